//! Who gets in: TLS 1.3 by the nodes' own keys, then an exchange of tickets.
//!
//! libp2p's own TLS upgrade prefers ChaCha20, which costs twice the CPU of AES-128 on machines with
//! AES instructions, so the configuration is ours; the certificates are libp2p's
//! (<https://github.com/libp2p/specs/blob/master/tls/tls.md>). No protocol is negotiated before
//! TLS: there is only one, and a stranger shall learn nothing.
//!
//! The dialer shows its ticket first, together with the end of its handshake. The listener says
//! nothing at all until that ticket has verified, then shows its own. Nothing is spoken before both
//! have.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use futures_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use libp2p::{
    PeerId,
    core::{
        Transport,
        connection::ConnectedPoint,
        muxing::StreamMuxerBox,
        transport::{Boxed, timeout::TransportTimeout},
    },
    tcp,
};
use libp2p_tls::certificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig,
    SignatureScheme, SupportedCipherSuite,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider,
        aws_lc_rs::{
            self,
            cipher_suite::{
                TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
            },
        },
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use shoal_protocol::directory::NodeId;
use socket2::SockRef;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{
    limits::{HANDSHAKE_TIMEOUT, TICKET_BYTES_MAX, TICKET_TIMEOUT, UNSENT_BYTES_MAX},
    muxer::Muxer,
};
use crate::cluster::{self, Admission, AdmissionError, Identity, Ticket};

/// Tells our connections from any other TLS; the number rises when the handshake changes, or what
/// streams are made of.
const ALPN: &[u8] = b"shoal/2";

/// AES-128 first: 1.2 CPU-seconds per GiB against about 2.5 with ChaCha20, measured.
const CIPHER_SUITES: [SupportedCipherSuite; 3] = [
    TLS13_AES_128_GCM_SHA256,
    TLS13_AES_256_GCM_SHA384,
    TLS13_CHACHA20_POLY1305_SHA256,
];

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// TLS failed.
    #[error("TLS handshake: {0}")]
    Tls(#[source] io::Error),
    /// The certificate does not carry a node's key.
    #[error("TLS certificate: {0}")]
    Certificate(#[from] certificate::ParseError),
    /// It is a libp2p host, but none of ours.
    #[error("{0} has a key that is not ed25519, so it is not a Shoal node")]
    ForeignKey(PeerId),
    /// We do not let it in.
    #[error("node {node:?} is not let in: {reason}")]
    Refused {
        /// Who.
        node: NodeId,
        /// Why.
        reason: AdmissionError,
    },
    /// It did not let us in, or broke.
    #[error(
        "node {0:?} closed the connection without showing a ticket; most likely it does not let this node in, and its log says why; give both nodes the same cluster key or tickets of one cluster"
    )]
    NoTicket(NodeId),
    /// It was too slow.
    #[error("node {node:?} showed no ticket within {} s", TICKET_TIMEOUT.as_secs())]
    Slow {
        /// Who.
        node: NodeId,
    },
    /// It announced a ticket of an impossible length.
    #[error("node {node:?} announced a ticket of {bytes} bytes, over {TICKET_BYTES_MAX}")]
    TicketTooLong {
        /// Who.
        node: NodeId,
        /// The announced length.
        bytes: usize,
    },
    /// The connection broke.
    #[error("exchange of tickets: {0}")]
    Io(#[from] io::Error),
}

/// Why this node cannot do TLS.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] certificate::GenError),
    #[error("cannot configure TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// TCP, TLS, tickets.
pub(super) fn transport(
    identity: &Identity,
    admission: Admission,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, SetupError> {
    let gate = Gate::new(identity, admission)?;
    let tcp = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true));
    let secured = tcp.and_then(move |socket, endpoint| async move {
        if let Err(error) = SockRef::from(&socket.0).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
            debug!(%error, "cannot set TCP_NOTSENT_LOWAT");
        }
        let (peer, stream) = gate.pass(socket, &endpoint).await?;
        let muxer = Muxer::new(stream, endpoint.is_dialer());
        Ok::<_, HandshakeError>((peer, StreamMuxerBox::new(muxer)))
    });
    Ok(TransportTimeout::new(secured, HANDSHAKE_TIMEOUT).boxed())
}

/// The gate that every connection passes.
#[derive(Clone)]
struct Gate {
    client: TlsConnector,
    server: TlsAcceptor,
    admission: Admission,
}

impl Gate {
    fn new(identity: &Identity, admission: Admission) -> Result<Self, SetupError> {
        let (client, server) = tls_configs(identity)?;
        Ok(Self {
            client: TlsConnector::from(Arc::new(client)),
            server: TlsAcceptor::from(Arc::new(server)),
            admission,
        })
    }

    async fn pass<S>(
        self,
        socket: S,
        endpoint: &ConnectedPoint,
    ) -> Result<(PeerId, TlsStream<S>), HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let dialer = endpoint.is_dialer();
        let mut stream: TlsStream<S> = if dialer {
            // Servers are not told apart by name, and an address is not sent as one.
            let name = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            let handshake = self.client.connect(name, socket).await;
            handshake.map_err(HandshakeError::Tls)?.into()
        } else {
            let handshake = self.server.accept(socket).await;
            handshake.map_err(HandshakeError::Tls)?.into()
        };
        let peer = peer_of(&stream)?;
        let node = cluster::node_id_of(&peer).ok_or(HandshakeError::ForeignKey(peer))?;
        let exchanged = timeout(
            TICKET_TIMEOUT,
            exchange(&mut stream, &self.admission, node, dialer),
        )
        .await
        .unwrap_or(Err(HandshakeError::Slow { node }));
        if let Err(error) = exchanged {
            let address = endpoint.get_remote_address();
            if matches!(
                error,
                HandshakeError::Refused { .. } | HandshakeError::NoTicket(_)
            ) {
                warn!(%address, "{error}");
            } else {
                debug!(%address, "{error}");
            }
            // Says by TLS that this was on purpose, so that the other side stops at once.
            let _ = timeout(TICKET_TIMEOUT, stream.close()).await;
            return Err(error);
        }
        Ok((peer, stream))
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    admission: &Admission,
    node: NodeId,
    dialer: bool,
) -> Result<(), HandshakeError> {
    if dialer {
        show_ticket(stream, admission).await?;
    }
    let theirs = read_ticket(stream, node).await?;
    Ticket::decode(&theirs)
        .and_then(|ticket| admission.admit(&ticket, node))
        .map_err(|reason| HandshakeError::Refused { node, reason })?;
    if !dialer {
        show_ticket(stream, admission).await?;
    }
    Ok(())
}

async fn show_ticket<S: AsyncWrite + Unpin>(
    stream: &mut S,
    admission: &Admission,
) -> io::Result<()> {
    let ticket = admission.own_ticket().encoded();
    let mut frame = (ticket.len() as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(&ticket);
    stream.write_all(&frame).await?;
    stream.flush().await
}

async fn read_ticket<S: AsyncRead + Unpin>(
    stream: &mut S,
    node: NodeId,
) -> Result<Vec<u8>, HandshakeError> {
    let mut length = [0; 4];
    stream
        .read_exact(&mut length)
        .await
        .map_err(|_| HandshakeError::NoTicket(node))?;
    let bytes = u32::from_be_bytes(length) as usize;
    if bytes > TICKET_BYTES_MAX {
        return Err(HandshakeError::TicketTooLong { node, bytes });
    }
    let mut ticket = vec![0; bytes];
    stream.read_exact(&mut ticket).await?;
    Ok(ticket)
}

fn peer_of<S>(stream: &TlsStream<S>) -> Result<PeerId, HandshakeError> {
    let (_, connection) = stream.get_ref();
    let certificate = connection
        .peer_certificates()
        .and_then(|chain| chain.first())
        .ok_or_else(|| HandshakeError::Tls(io::Error::other("no certificate was shown")))?;
    Ok(certificate::parse(certificate)?.peer_id())
}

pub(super) fn tls_configs(identity: &Identity) -> Result<(ClientConfig, ServerConfig), SetupError> {
    let (certificate, key) = certificate::generate(&identity.keypair())?;
    let key = aws_lc_rs::sign::any_supported_type(&key)?;
    // Past rustls' own check of the pair, which does not know libp2p's critical extension.
    let own = Arc::new(SingleCertAndKey::from(CertifiedKey::new(
        vec![certificate],
        key,
    )));
    let provider = Arc::new(CryptoProvider {
        cipher_suites: CIPHER_SUITES.to_vec(),
        ..aws_lc_rs::default_provider()
    });
    let verifier = Arc::new(Verifier(Arc::clone(&provider)));
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
        .with_client_cert_resolver(Arc::clone(&own) as Arc<dyn ResolvesClientCert>);
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.enable_sni = false;
    client.resumption = Resumption::disabled();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(own);
    server.alpn_protocols = vec![ALPN.to_vec()];
    // A resumption ticket would be the first thing that a stranger gets to read.
    server.send_tls13_tickets = 0;
    Ok((client, server))
}

/// Checks that a certificate is what libp2p wants it to be: one, self-signed, carrying the key of
/// a node that has signed the certificate's own. Whose key that is is decided by the tickets.
#[derive(Debug)]
struct Verifier(Arc<CryptoProvider>);

impl Verifier {
    fn check_chain(
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        if !intermediates.is_empty() {
            return Err(CertificateError::BadEncoding.into());
        }
        certificate::parse(end_entity)?;
        Ok(())
    }

    fn check_signature(
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        certificate::parse(certificate)?.verify_signature(
            signed.scheme,
            message,
            signed.signature(),
        )?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn only_tls13() -> rustls::Error {
        rustls::Error::General("only TLS 1.3 is spoken here".into())
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Self::check_chain(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(Self::only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Self::check_chain(end_entity, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(Self::only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
