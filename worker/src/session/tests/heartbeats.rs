//! Heartbeats, and what they keep alive.

use super::*;

#[test]
pub(super) fn heartbeats_are_numbered_and_name_every_lease_with_its_progress() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    sim.grant(2, v1::Phase::Stage);
    sim.run[0].progress.add(7);
    sim.pass(INTERVAL);
    sim.ack_heartbeat(1);
    sim.pass(INTERVAL);
    let beats = sim.take_sent();
    let Out::Heartbeat(beat) = &beats[1] else { panic!("{beats:?}") };
    assert_eq!(beat.number, 2);
    assert_eq!(
        beat.leases.iter().map(|l| (l.token.unwrap().counter, l.done)).collect::<Vec<_>>(),
        [(1, 7), (2, 0)]
    );
}

#[test]
pub(super) fn acknowledged_heartbeats_keep_leases() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    for number in 1..=10 {
        sim.pass(INTERVAL);
        sim.ack_heartbeat(number);
    }
    assert!(sim.cancelled.is_empty() && sim.closed.is_empty());
}

#[test]
pub(super) fn an_unanswered_heartbeat_ends_the_stream_before_the_lease_lapses() {
    let mut sim = Sim::attached(2);
    sim.grant(1, v1::Phase::Stage);
    sim.pass(INTERVAL);
    sim.ack_heartbeat(1);
    // The next heartbeat is never answered: half a TTL later the stream is given up. There is time left to
    // save the lease on a new one.
    sim.pass(INTERVAL + TTL / 2 - Duration::from_millis(1));
    assert!(sim.closed.is_empty());
    sim.pass(Duration::from_millis(1));
    assert_eq!((sim.closed.as_slice(), sim.cancelled.len()), ([0].as_slice(), 0));
    sim.attach(0);
    sim.pass(INTERVAL);
    sim.ack_heartbeat(1);
    sim.pass(INTERVAL);
    assert!(sim.cancelled.is_empty());
}

#[test]
pub(super) fn a_lease_is_stopped_a_ttl_after_the_last_acknowledged_heartbeat_was_sent() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    sim.grant(2, v1::Phase::Stage);
    sim.pass(INTERVAL);
    // The ack comes a second later; what counts is when the heartbeat was sent.
    sim.pass(Duration::from_secs(1));
    sim.ack_heartbeat(1);
    sim.event(Event::Closed(0));
    sim.pass(TTL - Duration::from_secs(1) - Duration::from_millis(1));
    assert!(sim.cancelled.is_empty());
    sim.pass(Duration::from_millis(1));
    assert_eq!(sim.cancelled, [1]);
    // The waiting one is gone, the running one keeps its slot until it has stopped; neither reports.
    sim.finish(1);
    assert_eq!(sim.running(), [1]);
    sim.attach(0);
    let sent = sim.take_sent();
    assert!(!sent.iter().any(|frame| matches!(frame, Out::Report(_))));
    let greeting = sent.iter().find(|frame| matches!(frame, Out::Hello(_))).unwrap();
    assert_eq!(hello(greeting), [0_u64; 0]);
}

#[test]
pub(super) fn a_heartbeat_doesnt_keep_a_lease_that_came_after_it() {
    let mut sim = Sim::attached(1);
    sim.pass(INTERVAL);
    sim.pass(Duration::from_secs(1));
    sim.grant(1, v1::Phase::Stage);
    let granted = sim.now;
    sim.ack_heartbeat(1);
    sim.event(Event::Closed(0));
    sim.pass(granted + TTL - sim.now);
    assert_eq!(sim.cancelled, [1]);
}

#[test]
pub(super) fn a_new_stream_keeps_leases_from_its_hello_on() {
    let mut sim = Sim::attached(1);
    sim.grant(1, v1::Phase::Stage);
    sim.pass(Duration::from_secs(2));
    sim.event(Event::Closed(0));
    sim.pass(Duration::from_secs(5));
    sim.sent.clear();
    sim.attach(0);
    assert_eq!(hello(&sim.take_sent()[0]), [1]);
    let hello_at = sim.now;
    sim.event(Event::Closed(0));
    sim.pass(TTL - Duration::from_millis(1));
    assert!(sim.cancelled.is_empty());
    sim.pass(hello_at + TTL - sim.now);
    assert_eq!(sim.cancelled, [1]);
}

#[test]
pub(super) fn another_protocol_version_ends_the_stream() {
    let mut sim = Sim::new(settings(1, 1, 1));
    sim.event(Event::Opened(0));
    sim.frame(0, In::Welcome(v1::Welcome { protocol_version: 2, ..Default::default() }));
    assert_eq!(sim.closed, [0]);
    // What the dead stream still brings is nothing.
    sim.grant(1, v1::Phase::Stage);
    assert!(sim.run.is_empty());
}

#[test]
pub(super) fn a_coordinator_that_never_says_welcome_is_left() {
    let mut sim = Sim::new(settings(1, 1, 1));
    sim.event(Event::Opened(0));
    sim.pass(Duration::from_secs(10));
    assert_eq!(sim.closed, [0]);
}

/// Worker and coordinator were both paused, so that the stream is as it was: the coordinator takes the leases to
/// be held for as long as it hears of the worker. A new greeting says which are.
#[test]
pub(super) fn a_stream_that_outlived_its_leases_is_greeted_anew() {
    let mut sim = Sim::attached_to(2, 1);
    sim.grant(1, v1::Phase::Stage);
    sim.grant(2, v1::Phase::Stage);
    sim.pass(INTERVAL);
    sim.ack_heartbeat_on(0, 1);
    sim.ack_heartbeat_on(1, 1);
    sim.now += TTL;
    sim.event(Event::Tick);
    assert_eq!((sim.cancelled.clone(), sim.closed.clone()), (vec![1], vec![0]));
    sim.sent.clear();
    sim.attach(0);
    assert_eq!(hello(&sim.sent_on(0)[0]), [0_u64; 0]);
}

fn welcome(ttl: (i64, i32), interval: (i64, i32)) -> In {
    let duration = |(seconds, nanos)| Some(prost_types::Duration { seconds, nanos });
    In::Welcome(v1::Welcome {
        coordinator: "c".into(),
        protocol_version: 1,
        lease_ttl: duration(ttl),
        heartbeat_interval: duration(interval),
        idle_heartbeat_interval: duration(interval),
    })
}

#[test]
pub(super) fn odd_times_are_made_safe() {
    let most = (i64::MAX, 999_999_999);
    for (ttl, interval) in
        [((0, 1), (0, 1)), ((9, 0), (0, 1)), (most, most), (most, (0, 1)), ((-1, 0), (-1, 0))]
    {
        let mut sim = Sim::new(settings(1, 1, 1));
        sim.event(Event::Opened(0));
        sim.frame(0, welcome(ttl, interval));
        sim.grant(1, v1::Phase::Stage);
        sim.sent.clear();
        sim.pass(Duration::from_secs(1));
        assert!(sim.sent.len() < 1000, "{ttl:?} {interval:?}: {} heartbeats in a second", sim.sent.len());
        sim.down(0);
        // What a clock can add.
        let day = Duration::from_hours(24);
        assert!(sim.machine.wake_at().is_none_or(|at| at <= sim.now + day), "{ttl:?} {interval:?}");
    }
}

/// A worker of one coordinator that names an idle interval.
fn idle(interval: Duration) -> Sim {
    let mut sim = Sim::new(settings(1, 1, 1));
    attach_idle(&mut sim, 0, interval);
    sim.sent.clear();
    sim
}

fn attach_idle(sim: &mut Sim, link: LinkId, interval: Duration) {
    let duration = |d: Duration| prost_types::Duration::try_from(d).ok();
    sim.event(Event::Opened(link));
    let welcome = v1::Welcome {
        coordinator: format!("c{link}"),
        protocol_version: 1,
        lease_ttl: duration(TTL),
        heartbeat_interval: duration(INTERVAL),
        idle_heartbeat_interval: duration(interval),
    };
    sim.frame(link, In::Welcome(welcome));
}

/// Passes time, with every heartbeat of the link acknowledged at once; when each was sent, since the beginning,
/// and how many leases it named.
fn beats(sim: &mut Sim, link: LinkId, time: Duration) -> Vec<(Duration, usize)> {
    const STEP: Duration = Duration::from_millis(100);
    let begin = sim.now;
    let mut beats = Vec::new();
    while sim.now < begin + time {
        sim.pass(STEP);
        let sent = std::mem::take(&mut sim.sent);
        for (_, frame) in sent.into_iter().filter(|(to, _)| *to == link) {
            let Out::Heartbeat(beat) = frame else { continue };
            beats.push((sim.now - begin, beat.leases.len()));
            sim.ack_heartbeat_on(link, beat.number);
        }
    }
    beats
}

const IDLE: Duration = Duration::from_millis(5800);

/// A ceiling: with ten thousand workers each frame more is a lot.
#[test]
pub(super) fn an_idle_worker_sends_one_small_frame_each_interval_and_nothing_else() {
    let mut sim = idle(IDLE);
    let (mut frames, mut bytes) = (0, 0);
    for number in 1..=20 {
        sim.pass(IDLE);
        for frame in sim.take_sent() {
            frames += 1;
            bytes += prost::Message::encoded_len(&v1::AttachRequest { frame: Some(frame) });
        }
        sim.ack_heartbeat(number);
    }
    assert_eq!((frames, sim.closed.len()), (20, 0), "in thirteen times the TTL");
    assert!(bytes <= 8 * frames, "{bytes} bytes in {frames} frames");
}

#[test]
pub(super) fn a_lease_makes_heartbeats_frequent_for_as_long_as_it_is_held() {
    let seconds = |s: f64, leases| (Duration::from_secs_f64(s), leases);
    let mut sim = idle(IDLE);
    assert_eq!(beats(&mut sim, 0, IDLE), [seconds(5.8, 0)]);
    // Just after a heartbeat: the next comes an interval after the lease, and so on.
    sim.grant(1, v1::Phase::Stage);
    assert_eq!(beats(&mut sim, 0, 2 * INTERVAL), [seconds(3.0, 1), seconds(6.0, 1)]);
    sim.finish(1);
    // Its report isn't acknowledged: that is no idleness yet.
    assert_eq!(beats(&mut sim, 0, INTERVAL), [seconds(3.0, 1)]);
    sim.ack_report(1, v1::report_ack::Result::Durable as i32);
    assert_eq!(beats(&mut sim, 0, 2 * IDLE + INTERVAL), [seconds(3.0, 0), seconds(8.8, 0), seconds(14.6, 0)]);
    assert!(sim.closed.is_empty() && sim.cancelled.is_empty());
}

/// The lease's time counts from its coming, and its renewal comes no later than for a worker that was never idle.
#[test]
pub(super) fn a_lease_that_comes_at_any_time_between_two_idle_heartbeats_is_renewed_within_an_interval() {
    for after in (0..58).map(|tenths| Duration::from_millis(100 * tenths)) {
        let mut sim = idle(IDLE);
        beats(&mut sim, 0, IDLE + after);
        let granted = sim.now;
        sim.grant(1, v1::Phase::Stage);
        let first = beats(&mut sim, 0, INTERVAL)[0];
        assert_eq!(first, (INTERVAL.min(IDLE - after), 1), "{after:?}");
        // Heard no more: it lives a TTL after its last renewal that was answered, within INTERVAL of its coming.
        let sent = granted + first.0;
        sim.event(Event::Closed(0));
        sim.pass(sent + TTL - sim.now - Duration::from_millis(1));
        assert!(sim.cancelled.is_empty(), "{after:?}");
        sim.pass(INTERVAL + Duration::from_millis(1));
        assert_eq!(sim.cancelled, [1], "{after:?}");
    }
}

/// A coordinator that was started anew waits a TTL for the workers that hold leases of its batches: whoever was idle
/// there must find out by then that its stream is dead. (Simulated seed 2645.)
#[test]
pub(super) fn a_stream_that_was_idle_is_given_up_within_a_ttl_of_its_last_answer() {
    let ms = Duration::from_millis;
    for interval in [INTERVAL, ms(4500), IDLE] {
        let mut sim = idle(interval);
        // The welcome was the last.
        sim.pass(interval);
        let patience = (TTL / 2).min(TTL.saturating_sub(interval));
        sim.pass(patience.saturating_sub(ms(1)));
        assert!(sim.closed.is_empty(), "{interval:?}");
        sim.pass(ms(1));
        assert_eq!(sim.closed.len(), 1, "{interval:?}");
    }
}

#[test]
pub(super) fn leases_that_a_new_owner_takes_up_make_its_heartbeats_frequent() {
    let mut sim = Sim::new(settings(2, 1, 2));
    attach_idle(&mut sim, 0, IDLE);
    attach_idle(&mut sim, 1, IDLE);
    sim.grant(1, v1::Phase::Stage);
    sim.pass(Duration::from_secs(1));
    sim.down(0);
    sim.owner(1, 2);
    assert_eq!(beats(&mut sim, 1, INTERVAL), [(INTERVAL, 1)]);
}

#[test]
pub(super) fn leases_that_are_held_at_the_welcome_make_heartbeats_frequent_from_there() {
    let mut sim = idle(IDLE);
    sim.grant(1, v1::Phase::Stage);
    sim.down(0);
    sim.sent.clear();
    attach_idle(&mut sim, 0, IDLE);
    assert_eq!(beats(&mut sim, 0, INTERVAL), [(INTERVAL, 1)]);
}

#[test]
pub(super) fn an_idle_interval_is_never_shorter_than_the_other_nor_too_long() {
    for (said, is) in [(1, 3000), (3000, 3000), (4000, 4000), (5850, 5850), (5851, 5850), (60_000, 5850)] {
        let mut sim = idle(Duration::from_millis(said));
        sim.pass(Duration::from_millis(is - 1));
        assert!(sim.sent.is_empty(), "{said}");
        sim.pass(Duration::from_millis(1));
        assert_eq!(sim.sent.len(), 1, "{said}");
    }
}
