//! Who is kept out.

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::compat::TokioAsyncReadCompatExt as _;

use super::*;

/// `stranger` and `host` know each other's address, try to talk, and neither hears anything.
async fn do_not_talk(mut stranger: Node, mut host: Node) {
    let to_host = stranger.knows(&host);
    stranger.network.send(to_host, Message::MembersHash(1));
    let (header, bytes) = chunk(0, 1000);
    let sent = stranger.network.send_chunk(to_host, header, bytes).await;
    assert_eq!(sent, Err(SendError::Unreachable));
    assert!(matches!(stranger.next().await, NetworkEvent::Unreachable(peer) if peer == to_host));
    host.stays_silent().await;
    // The other way round, too.
    let to_stranger = host.knows(&stranger);
    host.network.send(to_stranger, Message::MembersHash(1));
    assert!(matches!(host.next().await, NetworkEvent::Unreachable(peer) if peer == to_stranger));
    stranger.stays_silent().await;
    assert_eq!(host.network.connections(), Connections::default());
}

/// A node whose ticket is not checked before it starts, as a liar's would not be.
async fn with_ticket(identity: Identity, ticket: crate::cluster::Ticket) -> Node {
    let admission = Admission::unchecked(ticket, &identity);
    start_with(identity, admission).await
}

#[tokio::test]
async fn a_node_of_no_cluster_is_kept_out() {
    let identity = Identity::generate();
    let admission = Admission::alone(&identity);
    let stranger = start_with(identity, admission).await;
    do_not_talk(stranger, member(&ClusterKey::generate()).await).await;
}

#[tokio::test]
async fn a_node_of_another_cluster_is_kept_out() {
    let stranger = member(&ClusterKey::generate()).await;
    do_not_talk(stranger, member(&ClusterKey::generate()).await).await;
}

#[tokio::test]
async fn who_is_kept_out_is_told_what_to_look_at() {
    let stranger = member(&ClusterKey::generate()).await;
    let host = member(&ClusterKey::generate()).await;
    let refused = stranger.network.connect(host.address).await.unwrap_err();
    assert!(
        refused.to_string().contains("without showing a ticket"),
        "{refused}"
    );
    let ours = stranger.network.connect(stranger.address).await;
    assert_eq!(ours, Err(ConnectError::OurOwn));
}

#[tokio::test]
async fn an_expired_ticket_does_not_let_in() {
    let key = ClusterKey::generate();
    let identity = Identity::generate();
    let expired = clock::unix_seconds() - 5;
    let ticket = key.issue(identity.node_id(), expired, Roles::MEMBER);
    do_not_talk(with_ticket(identity, ticket).await, member(&key).await).await;
}

#[tokio::test]
async fn the_ticket_of_another_node_does_not_let_in() {
    let key = ClusterKey::generate();
    let victim = Identity::generate().node_id();
    let stolen = key.issue(victim, clock::unix_seconds() + 600, Roles::MEMBER);
    let stranger = with_ticket(Identity::generate(), stolen).await;
    do_not_talk(stranger, member(&key).await).await;
}

#[tokio::test]
async fn a_ticket_from_a_file_lets_in() {
    let key = ClusterKey::generate();
    let identity = Identity::generate();
    let ticket = key.issue(
        identity.node_id(),
        clock::unix_seconds() + 600,
        Roles::MEMBER,
    );
    let admission = Admission::with_ticket(ticket, &identity).unwrap();
    let guest = start_with(identity, admission).await;
    let mut host = member(&key).await;
    guest
        .network
        .send(guest.knows(&host), Message::MembersHash(1));
    assert_eq!(host.next_message().await.1, Message::MembersHash(1));
}

#[tokio::test]
async fn a_connection_closes_when_the_ticket_expires() {
    let key = ClusterKey::generate();
    let identity = Identity::generate();
    let ticket = key.issue(identity.node_id(), clock::unix_seconds() + 2, Roles::MEMBER);
    let admission = Admission::with_ticket(ticket, &identity).unwrap();
    let guest = start_with(identity, admission).await;
    let mut host = member(&key).await;
    guest
        .network
        .send(guest.knows(&host), Message::MembersHash(1));
    let (from, _) = host.next_message().await;
    assert_eq!(host.disconnected().await, from);
}

#[tokio::test]
async fn a_banned_node_is_cut_off_and_kept_out() {
    let (mut a, mut b) = pair().await;
    let to_b = a.knows(&b);
    a.network.send(to_b, Message::MembersHash(1));
    let (from_a, _) = b.next_message().await;
    b.network.ban(from_a);
    assert_eq!(a.disconnected().await, to_b);
    b.disconnected().await;
    a.network.send(to_b, Message::MembersHash(2));
    assert!(matches!(a.next().await, NetworkEvent::Unreachable(_)));
    b.stays_silent().await;
}

#[tokio::test]
async fn raw_tcp_reads_nothing_but_a_tls_alert() {
    let mut host = member(&ClusterKey::generate()).await;
    for opening in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x13/multistream/1.0.0\n",
        &[0; 64],
    ] {
        let mut socket = TcpStream::connect(host.address).await.unwrap().compat();
        socket.write_all(opening).await.unwrap();
        let mut read = Vec::new();
        // The connection may also be reset.
        let _ = timeout(PATIENCE, socket.read_to_end(&mut read))
            .await
            .expect("it stayed open");
        let alert = read.len() <= 7 && read.first().is_none_or(|kind| *kind == 21);
        assert!(alert, "{read:?}");
    }
    host.stays_silent().await;
}

/// Speaks our TLS with a key of its own, shows `ticket` if there is one, and returns all that it
/// can read after the handshake.
async fn read_after_tls(host: SocketAddr, ticket: Option<&[u8]>) -> Vec<u8> {
    let stranger = Identity::generate();
    let (client, _) = security::tls_configs(&stranger).unwrap();
    let socket = TcpStream::connect(host).await.unwrap().compat();
    let connector = futures_rustls::TlsConnector::from(Arc::new(client));
    let name = rustls::pki_types::ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let mut stream = connector.connect(name, socket).await.unwrap();
    if let Some(ticket) = ticket {
        stream
            .write_all(&(ticket.len() as u32).to_be_bytes())
            .await
            .unwrap();
        stream.write_all(ticket).await.unwrap();
        // What a member would say next.
        let _ = stream
            .write_all(&[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0])
            .await;
        let _ = stream.flush().await;
    }
    let mut read = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut read))
        .await
        .expect("it stayed open");
    read
}

#[tokio::test]
async fn after_tls_a_stranger_reads_not_one_byte() {
    let key = ClusterKey::generate();
    let mut host = member(&key).await;
    let stolen = key.issue(host.identity.node_id(), u64::MAX, Roles::MEMBER);
    for ticket in [
        None,
        Some(Vec::new()),
        Some(b"let me in".to_vec()),
        Some(vec![1; 5000]),
        Some(stolen.encoded()),
    ] {
        let read = read_after_tls(host.address, ticket.as_deref()).await;
        assert!(read.is_empty(), "{read:?}");
    }
    host.stays_silent().await;
    assert_eq!(host.network.connections(), Connections::default());
}

#[tokio::test]
async fn a_libp2p_host_without_a_ticket_is_kept_out() {
    let mut host = member(&ClusterKey::generate()).await;
    let keypair = libp2p::identity::Keypair::generate_ed25519();
    let client = libp2p_tls::make_client_config(&keypair, None).unwrap();
    let socket = TcpStream::connect(host.address).await.unwrap().compat();
    let connector = futures_rustls::TlsConnector::from(Arc::new(client));
    let name = rustls::pki_types::ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    if let Ok(mut stream) = connector.connect(name, socket).await {
        let mut read = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut read))
            .await
            .expect("it stayed open");
        assert!(read.is_empty(), "{read:?}");
    }
    host.stays_silent().await;
}
