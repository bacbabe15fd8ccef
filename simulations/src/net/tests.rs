use super::{Fact, MILLISECOND, Net, NodeLinks, Place, SECOND, Topology};

type TestNet = Net<&'static str, u32, ()>;

const GBIT: f64 = 1e9 / 8.0;

fn nodes(count: u16, per_rack: u16) -> Vec<NodeLinks> {
    (0..count)
        .map(|node| NodeLinks {
            up: GBIT,
            down: GBIT,
            place: Place::Rack {
                zone: 0,
                rack: node / per_rack,
            },
        })
        .collect()
}

fn topology() -> Topology {
    Topology {
        latency_rack: 100_000,
        latency_zone: 100_000,
        latency_far: 100_000,
        latency_outside: 100_000,
        ..Topology::default()
    }
}

fn net(count: u16) -> TestNet {
    Net::new(&nodes(count, 100), topology(), 8, 1)
}

/// When each stream was read, in seconds, by tag.
fn read_times(net: &mut TestNet) -> Vec<(u32, f64)> {
    let mut times = Vec::new();
    while let Some(fact) = net.next(100 * SECOND) {
        if let Fact::Read { tag, .. } = fact {
            times.push((tag, net.now() as f64 / 1e9));
        }
    }
    times
}

#[track_caller]
fn about(value: f64, expected: f64) {
    assert!(
        (value - expected).abs() <= 0.03 * expected,
        "{value} is not about {expected}"
    );
}

#[test]
fn one_stream_gets_the_whole_link_and_two_share_it() {
    let mut one = net(3);
    one.start(0, 1, 125_000_000, 1);
    about(read_times(&mut one)[0].1, 1.0);
    let mut two = net(3);
    two.start(0, 1, 62_500_000, 1);
    two.start(0, 2, 62_500_000, 2);
    let times = read_times(&mut two);
    about(times[0].1, 1.0);
    about(times[1].1, 1.0);
}

#[test]
fn many_senders_to_one_receiver_take_as_long_as_its_link() {
    let mut net = net(9);
    for from in 1..9 {
        net.start(from, 0, 10_000_000, from as u32);
    }
    about(read_times(&mut net).last().unwrap().1, 0.64);
}

#[test]
fn a_rack_passes_what_its_pipe_lets_through_and_does_not_hold_up_the_rest() {
    let mut topology = topology();
    topology.rack_rate = Some(GBIT / 2.0);
    let mut net: TestNet = Net::new(&nodes(8, 4), topology, 8, 1);
    for from in 0..4 {
        net.start(from, 4 + from, 12_500_000, from as u32);
    }
    net.start(5, 6, 50_000_000, 9);
    let times = read_times(&mut net);
    let local = times.iter().find(|(tag, _)| *tag == 9).unwrap().1;
    assert!(local < 0.56, "{times:?}");
    about(times.last().unwrap().1, 0.8);
}

#[test]
fn a_stopped_receiver_holds_up_its_own_streams_only() {
    let mut net = net(3);
    net.stop(1);
    net.start(0, 1, 50_000_000, 1);
    net.start(0, 2, 50_000_000, 2);
    net.send(0, 1, 100, "hello");
    while let Some(fact) = net.next(SECOND) {
        assert!(
            !matches!(fact, Fact::Message { .. } | Fact::Read { tag: 1, .. }),
            "{fact:?}"
        );
        if let Fact::Read { tag: 2, .. } = fact {
            assert!(net.now() < 650 * MILLISECOND);
        }
    }
    net.go_on(1);
    let mut heard = false;
    let mut read = false;
    while let Some(fact) = net.next(2 * SECOND) {
        heard |= matches!(
            fact,
            Fact::Message {
                message: "hello",
                ..
            }
        );
        read |= matches!(fact, Fact::Read { tag: 1, .. });
    }
    assert!(heard && read);
}

#[test]
fn a_message_does_not_wait_for_the_streams() {
    let mut net = net(2);
    for tag in 0..4 {
        net.start(0, 1, 50_000_000, tag);
    }
    assert!(net.next(100 * MILLISECOND).is_none());
    net.send(0, 1, 200, "quick");
    while let Some(fact) = net.next(SECOND) {
        if let Fact::Message { .. } = fact {
            // What one card and one port have buffered takes no more than 10 ms.
            assert!(net.now() <= 111 * MILLISECOND, "{}", net.now());
            return;
        }
    }
    panic!("the message never came");
}

#[test]
fn messages_stay_in_order_whatever_happens_to_the_latency() {
    let mut net = net(2);
    net.set_extra_latency(0, 50 * MILLISECOND);
    net.send(0, 1, 1000, "first");
    net.set_extra_latency(0, 0);
    net.send(0, 1, 10, "second");
    let mut heard = Vec::new();
    while let Some(fact) = net.next(SECOND) {
        if let Fact::Message { message, .. } = fact {
            heard.push(message);
        }
    }
    assert_eq!(heard, ["first", "second"]);
}

#[test]
fn a_stream_goes_on_with_what_it_is_given_under_the_names_that_it_was_given() {
    let mut net = net(2);
    let id = net.start_paced(0, 1, 1_000_000, 1, GBIT / 10.0);
    let mut read = Vec::new();
    while let Some(fact) = net.next(SECOND) {
        match fact {
            Fact::Left { tag, .. } if tag < 5 => net.extend(id, 1_000_000, tag + 1),
            Fact::Read { tag, .. } => read.push(tag),
            Fact::Due(()) | Fact::Message { .. } | Fact::Progress { .. } | Fact::Left { .. } => {}
        }
    }
    assert_eq!(read, [1, 2, 3, 4, 5]);
    // The last of twenty frames leaves 20 ms after the one before it began.
    about(net.sent_until(0) as f64 / 1e9, 0.382);
}

#[test]
fn a_reset_or_a_division_cuts_what_it_concerns_and_slots_are_used_again() {
    let mut net = net(4);
    for round in 0..50u32 {
        net.start(0, 1, 5_000_000, round);
        net.start(2, 3, 500_000, round);
        net.next(net.now() + 5 * MILLISECOND);
        if round % 2 == 0 {
            assert_eq!(net.reset(1).len(), 1);
        } else {
            assert_eq!(net.divide(|node| u8::from(node == 1), None).len(), 1);
            net.divide(|_| 0, None);
        }
        while net.next(net.now() + 50 * MILLISECOND).is_some() {}
    }
    assert!(net.streams.len() < 8, "{}", net.streams.len());
    net.send(0, 1, 10, "lost");
    net.reset(1);
    net.send(0, 1, 10, "found");
    let mut heard = Vec::new();
    while let Some(fact) = net.next(100 * SECOND) {
        if let Fact::Message { message, .. } = fact {
            heard.push(message);
        }
    }
    assert_eq!(heard, ["found"]);
}

#[test]
fn loss_slows_streams_down_and_delays_some_messages() {
    let mut topology = topology();
    topology.loss = 0.01;
    let mut net: TestNet = Net::new(&nodes(2, 2), topology, 8, 1);
    net.start(0, 1, 10_000_000, 1);
    // 1448 bytes in 200 us, times 12.2.
    let took = read_times(&mut net)[0].1;
    assert!((0.10..0.12).contains(&took), "{took}");
    let now = net.now();
    for _ in 0..1000 {
        net.send(0, 1, 100, "hello");
    }
    while net.next(now + 400 * MILLISECOND).is_some() {}
    assert!(net.now() >= now + 10 * MILLISECOND);
}

#[test]
fn a_connection_takes_two_round_trips_and_the_cores_of_both_ends() {
    let mut net = net(100);
    let first = net.connected_at(0, 1);
    // 0.4 ms of round trips and 2 ms of CPU.
    assert_eq!(first, 2_400_000);
    let last = (2..82).map(|from| net.connected_at(from, 1)).max().unwrap();
    // 80 handshakes on 8 cores.
    assert!(
        (11 * MILLISECOND..14 * MILLISECOND).contains(&last),
        "{last}"
    );
    // Whoever waits for that one is not busy with it meanwhile.
    assert_eq!(net.connected_at(81, 82), first);
}
