//! Every bound on what is done with an origin, each with the reason for its value.

use std::time::Duration;

/// To a TCP connection, TLS included. Three SYNs fit; a host that takes longer is down.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long whoever happens to try an origin again waits for it: an origin that is back answers in a
/// fraction of that, and one that drops packets would take all of [`CONNECT_TIMEOUT`].
pub(super) const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// From a sent request to the head of its answer. Registries that check permissions in a remote
/// database or wake a cold bucket take seconds, not more.
pub(super) const HEADERS_TIMEOUT: Duration = Duration::from_secs(15);

/// For the answer to what a tag names, the connection and a login included: a client waits for it, and
/// the swarm may remember.
pub(super) const TAG_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two pieces of a body. Longer than TCP's recovery from a burst of loss.
pub(super) const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// A credential helper that runs longer is waiting for somebody to type.
pub(super) const HELPER_TIMEOUT: Duration = Duration::from_secs(15);

/// Redirects followed for one request. Registries use one, gateways before them another.
pub(super) const REDIRECTS_MAX: usize = 5;

/// Upstreams that nobody configured and that are remembered with how they do. Clients choose them, so
/// it is bounded; one that was forgotten costs a login.
pub(super) const PUBLIC_MAX: usize = 1024;

/// Idle connections kept for each host: as many as one blob has origin streams at most (32).
pub(super) const IDLE_CONNECTIONS_MAX: usize = 32;

/// How long an idle connection is kept: below the 60 s after which most load balancers close it.
pub(super) const IDLE_CONNECTION_LIFETIME: Duration = Duration::from_secs(50);

/// The life of a token whose answer does not tell it (distribution's token specification).
pub(super) const TOKEN_LIFETIME_DEFAULT: Duration = Duration::from_mins(1);

/// How long a user name and password are used until docker's configuration, or its helper, is asked again:
/// at some registries they are tokens that end (ECR's in 12 h), and then the answer is 403 and not 401.
pub(super) const PASSWORD_LIFETIME: Duration = Duration::from_mins(10);

/// A token is renewed when this is left of its life, or a fifth of the whole where that is less:
/// the time that a request may be under way, and clocks that run apart.
pub(super) const TOKEN_RENEWAL_MARGIN: Duration = Duration::from_secs(20);

/// Repositories in one login: each adds some 100 bytes to the token, which travels in each request's
/// head, and servers refuse heads beyond 8 KiB.
pub(super) const SCOPES_MAX: usize = 16;

/// A token that the keeper of an upstream got itself is replaced on other members' word when it is so
/// old: one that is refused at once would be again, and a member could have it log in without end.
pub(super) const REPLACED_AFTER_MIN: Duration = Duration::from_secs(5);

/// The largest answer of a token realm. Tokens with many claims have a few KiB.
pub(super) const TOKEN_ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Repositories whose authorization is remembered. Clients choose repositories, so it is bounded;
/// one that was forgotten costs one more request.
pub(super) const GRANTS_MAX: usize = 4096;

/// Upstreams of which it is remembered how many pulls they give; a handful of registries say so.
pub(super) const ALLOWANCES_MAX: usize = 256;

/// The longest pause that an origin can impose: beyond it, asking again is cheaper than an hour
/// of pulls that fail because of one wrong header.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);

/// For a body that is collected as a whole, a manifest or a page of tags: a server that sends a
/// byte now and then must not hold anyone longer than the mirror lets a client wait.
pub(super) const COLLECT_TIMEOUT: Duration = Duration::from_mins(1);

/// For the body of an answer whose status already says all; it is read for its words, and so that
/// the connection can be used again.
pub(super) const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

/// How much of an error's body is read for its message.
pub(super) const ERROR_BODY_BYTES_MAX: u64 = 16 << 10;

/// Tags asked for with one request; registries give fewer as they like.
pub(super) const TAGS_PER_PAGE: usize = 1000;

/// Requests for one list of tags or referrers.
pub(super) const LIST_PAGES_MAX: usize = 1000;

/// Entries of one list: 13 MB of text at most, where they are tags.
pub(super) const LIST_MAX: usize = 100_000;

/// Bytes of one page; some registries give all tags at once.
pub(super) const LIST_PAGE_BYTES_MAX: u64 = 16 << 20;

/// Clients' rights that are remembered, by repository and credential; some 2 MB where challenges are of
/// the usual size. One that was forgotten costs one more request.
pub(super) const VERDICTS_MAX: usize = 4096;

/// Digests that repositories are known to hold; some 15 MB.
pub(super) const HELD_MAX: usize = 65_536;

/// The bytes of an origin's challenges that are relayed to a client, whose own bounds are not larger.
pub(super) const CHALLENGE_BYTES_MAX: usize = 4096;

/// A link in a registry's storage: a digest of sha512 has 135 characters.
pub(super) const LINK_BYTES_MAX: u64 = 1024;

/// Read of a file at once: large enough that handing reads to other threads costs little.
pub(super) const FILE_READ_BYTES: usize = 256 << 10;

/// To the service that gives credentials to what runs on a cloud's host or in a pod, with its answer. It
/// is next to the host: where nobody answers, there is none.
pub(super) const METADATA_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a link that put a layer into a repository is taken for true; as long as a client's right.
pub(super) const LINK_LIFETIME: Duration = Duration::from_mins(1);

/// Links that are remembered; one that was forgotten costs one more request.
pub(super) const LINKS_MAX: usize = 4096;
