//! What members say to each other.

use super::*;

#[tokio::test]
async fn messages_arrive_in_order_both_ways_without_dialling_twice() {
    let (mut a, mut b) = pair().await;
    let to_b = a.knows(&b);
    for number in 0..2000 {
        a.network.send(to_b, Message::MembersHash(number));
    }
    let mut from_a = None;
    for number in 0..2000 {
        let (from, message) = b.next_message().await;
        assert_eq!(message, Message::MembersHash(number));
        from_a = Some(from);
    }
    // b was never told a's address: it answers on the connection that there is.
    let to_a = from_a.unwrap();
    assert_eq!(b.directory.id(to_a), a.identity.node_id());
    b.network.send(to_a, Message::MembersHash(7));
    assert_eq!(a.next_message().await, (to_b, Message::MembersHash(7)));
    assert_eq!(
        a.network.connections(),
        Connections {
            control: 1,
            bulk: 0
        }
    );
    assert!(b.network.is_connected(to_a));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_dialling_at_once_neither_lose_nor_reorder() {
    const MESSAGES: u64 = 200;
    for _ in 0..10 {
        let (mut a, mut b) = pair().await;
        let (to_b, to_a) = (a.knows(&b), b.knows(&a));
        // Spread over the time in which both connections come about.
        for number in 0..MESSAGES {
            a.network.send(to_b, Message::MembersHash(number));
            b.network.send(to_a, Message::MembersHash(number));
            if number % 4 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        for number in 0..MESSAGES {
            assert_eq!(a.next_message().await.1, Message::MembersHash(number));
            assert_eq!(b.next_message().await.1, Message::MembersHash(number));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_arrive_whole_both_ways() {
    let (count, len) = (64, CHUNK_BYTES);
    let (mut a, mut b) = pair().await;
    let (to_b, to_a) = (a.knows(&b), b.knows(&a));
    for index in 0..count {
        a.network.expect(to_b, blob(), index);
        b.network.expect(to_a, blob(), index);
    }
    for (network, to) in [(a.network.clone(), to_b), (b.network.clone(), to_a)] {
        tokio::spawn(async move {
            for index in 0..count {
                let (header, bytes) = chunk(index, len);
                network.send_chunk(to, header, bytes).await.unwrap();
            }
        });
    }
    for index in 0..count {
        for (node, peer) in [(&mut a, to_b), (&mut b, to_a)] {
            let (from, header, bytes) = node.next_chunk().await;
            assert_eq!((from, header.index), (peer, index));
            assert!(header.attestation.covers(&bytes));
        }
    }
    // Chunks keep off the control connection, and need none.
    assert_eq!(a.network.connections().control, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_no_bytes_and_of_few_arrive_too() {
    let (mut a, mut b) = pair().await;
    let (to_b, to_a) = (a.knows(&b), b.knows(&a));
    let key = a.identity.signing_key();
    for (index, len) in [0_u32, 1, 5000].into_iter().enumerate() {
        let (index, bytes) = (index as u32, vec![3; len as usize]);
        b.network.expect(to_a, blob(), index);
        let attestation = Attestation::sign(&key, &blob(), index, ChunkHash::of(&bytes), len);
        let header = ChunkHeader {
            blob: blob(),
            index,
            size: 5001,
            attestation,
            packed: None,
        };
        let sent = a
            .network
            .send_chunk(to_b, header.clone(), bytes.clone().into());
        sent.await.unwrap();
        assert_eq!(b.next_chunk().await, (to_a, header, bytes.into()));
    }
    let _ = a.events.try_recv();
}

#[tokio::test]
async fn a_chunk_that_nobody_asked_for_is_passed_over() {
    let (a, mut b) = pair().await;
    let (to_b, to_a) = (a.knows(&b), b.knows(&a));
    b.network.expect(to_a, blob(), 1);
    b.network.expect(to_a, blob(), 2);
    b.network.unexpect(to_a, blob(), 1);
    for index in 0..3 {
        let (header, bytes) = chunk(index, 300_000);
        a.network.send_chunk(to_b, header, bytes).await.unwrap();
    }
    assert_eq!(b.next_chunk().await.1.index, 2);
    // It was expected once, not for ever.
    let (header, bytes) = chunk(2, 300_000);
    a.network.send_chunk(to_b, header, bytes).await.unwrap();
    b.stays_silent().await;
}

#[tokio::test]
async fn a_peer_that_sends_only_unwanted_chunks_is_cut_off() {
    let (a, b) = pair().await;
    let to_b = a.knows(&b);
    let flood = async {
        for index in 0.. {
            let (header, bytes) = chunk(index, 1000);
            if let Err(error) = a.network.send_chunk(to_b, header, bytes).await {
                return (index, error);
            }
        }
        unreachable!()
    };
    let (sent, error) = timeout(PATIENCE, flood).await.unwrap();
    assert!(sent >= limits::UNEXPECTED_CHUNKS_MAX - 1, "{sent}");
    assert_eq!(error, SendError::Disconnected);
}

#[tokio::test]
async fn the_progress_of_a_chunk_is_told() {
    let (a, mut b) = pair().await;
    let (to_b, to_a) = (a.knows(&b), b.knows(&a));
    b.network.expect(to_a, blob(), 0);
    let (header, bytes) = chunk(0, CHUNK_BYTES);
    a.network.send_chunk(to_b, header, bytes).await.unwrap();
    let mut seen = 0;
    loop {
        match b.next().await {
            NetworkEvent::ChunkProgress {
                received, total, ..
            } => {
                assert!(received > seen && u64::from(total) == CHUNK_BYTES);
                seen = received;
            }
            NetworkEvent::Chunk { .. } => break,
            _ => {}
        }
    }
    assert!(seen >= 3 << 20, "{seen}");
}

#[tokio::test]
async fn a_slow_driver_slows_the_sender_and_loses_no_message() {
    let (a, mut b) = pair().await;
    let to_b = a.knows(&b);
    let count = 3 * EVENTS_MAX as u64;
    for number in 0..count {
        a.network.send(to_b, Message::MembersHash(number));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for number in 0..count {
        assert_eq!(b.next_message().await.1, Message::MembersHash(number));
    }
}

#[tokio::test]
async fn what_cannot_be_reached_is_said_to_be_unreachable() {
    let (mut a, b) = pair().await;
    let to_b = a.knows(&b);
    drop(b);
    tokio::time::sleep(Duration::from_millis(200)).await;
    a.network.send(to_b, Message::MembersHash(1));
    assert!(matches!(a.next().await, NetworkEvent::Unreachable(peer) if peer == to_b));
    let (header, bytes) = chunk(0, 10);
    let sent = a.network.send_chunk(to_b, header, bytes).await;
    assert_eq!(sent, Err(SendError::Unreachable));
    // A peer of whom no address is known:
    let nobody = a.directory.intern_id(Identity::generate().node_id());
    a.network.send(nobody, Message::MembersHash(1));
    assert!(matches!(a.next().await, NetworkEvent::Unreachable(peer) if peer == nobody));
}

#[tokio::test]
async fn a_peer_that_dies_is_disconnected_and_chunks_to_it_fail() {
    let (mut a, mut b) = pair().await;
    let (to_b, to_a) = (a.knows(&b), b.knows(&a));
    a.network.send(to_b, Message::MembersHash(1));
    b.next_message().await;
    // It stops reading, then dies: the chunk does not fit into what TCP holds.
    for index in 0..64 {
        b.network.expect(to_a, blob(), index);
    }
    let network = a.network.clone();
    let sending = tokio::spawn(async move {
        loop {
            let (header, bytes) = chunk(0, CHUNK_BYTES);
            if let Err(error) = network.send_chunk(to_b, header, bytes).await {
                return error;
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(b);
    assert_eq!(a.disconnected().await, to_b);
    let error = timeout(PATIENCE, sending).await.unwrap().unwrap();
    assert!(
        matches!(error, SendError::Disconnected | SendError::Unreachable),
        "{error}"
    );
}

#[tokio::test]
async fn messages_to_a_peer_that_returned_at_another_address_reach_it() {
    let key = ClusterKey::generate();
    let (mut a, mut b) = (member(&key).await, member(&key).await);
    let to_b = a.knows(&b);
    a.network.send(to_b, Message::MembersHash(1));
    b.next_message().await;
    let identity = b.identity.clone();
    drop(b);
    assert_eq!(a.disconnected().await, to_b);
    let admission = Admission::with_key(key, &identity);
    let mut again = start_with(identity, admission).await;
    assert_eq!(
        a.directory.intern(&NodeRecord {
            id: again.identity.node_id(),
            generation: 2,
            addresses: vec![again.address],
            place: Place::default(),
        }),
        to_b
    );
    a.network.send(to_b, Message::MembersHash(2));
    assert_eq!(again.next_message().await.1, Message::MembersHash(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_nodes_talk_all_to_all_at_once() {
    const NODES: usize = 8;
    const ROUNDS: u64 = 50;
    let key = ClusterKey::generate();
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        nodes.push(member(&key).await);
    }
    for a in &nodes {
        for b in nodes.iter().filter(|b| b.address != a.address) {
            let to = a.knows(b);
            for round in 0..ROUNDS {
                a.network.send(to, Message::MembersHash(round));
            }
        }
    }
    // All at once, as drivers do: a node whose events nobody takes connects to nobody either.
    let hear_all = nodes.iter_mut().map(async |node| {
        let mut next = std::collections::HashMap::new();
        for _ in 0..ROUNDS as usize * (NODES - 1) {
            let (from, message) = node.next_message().await;
            let round = next.entry(from).or_insert(0);
            assert_eq!(message, Message::MembersHash(*round), "from {from:?}");
            *round += 1;
        }
        assert_eq!(next.len(), NODES - 1);
    });
    futures::future::join_all(hear_all).await;
}

#[tokio::test]
async fn a_peer_that_speaks_garbage_is_cut_off() {
    let (a, mut b) = pair().await;
    let to_b = a.knows(&b);
    a.network.send(to_b, Message::MembersHash(1));
    b.next_message().await;
    let mailbox = a.network.shared.mailboxes.of(to_b);
    mailbox.messages.push(b"\xffgarbage".to_vec());
    b.disconnected().await;
}

#[tokio::test]
async fn a_message_over_the_bound_is_not_sent_and_harms_nobody() {
    let (a, mut b) = pair().await;
    let to_b = a.knows(&b);
    let json = Bytes::from(vec![b' '; CONTROL_FRAME_BYTES_MAX]);
    a.network.send(to_b, Message::Stats { id: 1, json });
    a.network.send(to_b, Message::MembersHash(2));
    assert_eq!(b.next_message().await.1, Message::MembersHash(2));
}

#[tokio::test]
async fn a_peer_that_does_not_read_costs_no_more_than_its_bound() {
    let (mut a, b) = pair().await;
    let to_b = a.knows(&b);
    let json = Bytes::from(vec![b' '; CONTROL_FRAME_BYTES_MAX / 2]);
    // b's driver sleeps: its events, the window and the outbox fill up.
    for _ in 0..EVENTS_MAX + 100 {
        let json = json.clone();
        a.network.send(to_b, Message::Stats { id: 1, json });
        tokio::task::yield_now().await;
    }
    let lost = a
        .next_that(|event| match event {
            NetworkEvent::Unreachable(peer) => Some(peer),
            _ => None,
        })
        .await;
    assert_eq!(lost, to_b);
    assert_eq!(a.disconnected().await, to_b);
}

#[tokio::test]
async fn disconnecting_closes_and_the_next_message_dials_again() {
    let (mut a, mut b) = pair().await;
    let to_b = a.knows(&b);
    a.network.send(to_b, Message::MembersHash(1));
    b.next_message().await;
    a.network.disconnect(to_b);
    assert_eq!(a.disconnected().await, to_b);
    b.disconnected().await;
    a.network.send(to_b, Message::MembersHash(2));
    assert_eq!(b.next_message().await.1, Message::MembersHash(2));
}

#[tokio::test]
async fn a_port_in_use_is_a_clear_error() {
    let (a, _b) = pair().await;
    let identity = Identity::generate();
    let failed = start(NetworkConfig {
        admission: Admission::alone(&identity),
        identity,
        listen: vec![a.address],
        directory: Directory::new(),
        clock: Clock::start(),
    })
    .await;
    let error = failed.err().expect("the port is taken").to_string();
    assert!(
        error.contains(&a.address.to_string()) && error.contains("--listen"),
        "{error}"
    );
}

#[tokio::test]
async fn bootstrap_finds_a_member_that_starts_later_and_knows_itself() {
    let key = ClusterKey::generate();
    let mut a = member(&key).await;
    let spot = TcpListener::bind("127.0.0.1:0").unwrap();
    let later = spot.local_addr().unwrap();
    drop(spot);
    let join = [a.address, later].map(|address| address.to_string().parse().unwrap());
    let task = tokio::spawn(bootstrap::run(a.network.clone(), join.to_vec()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let identity = Identity::generate();
    let (_network, _events, _) = start(NetworkConfig {
        admission: Admission::with_key(key, &identity),
        identity: identity.clone(),
        listen: vec![later],
        directory: Directory::new(),
        clock: Clock::start(),
    })
    .await
    .unwrap();
    let joined = a
        .next_that(|event| match event {
            NetworkEvent::Connected(peer) => Some(peer),
            _ => None,
        })
        .await;
    assert_eq!(a.directory.id(joined), identity.node_id());
    task.abort();
}

#[test]
fn the_address_towards_loopback_is_loopback() {
    let towards = local_address_towards((Ipv4Addr::LOCALHOST, 7000).into());
    assert_eq!(towards, Some(Ipv4Addr::LOCALHOST.into()));
}
