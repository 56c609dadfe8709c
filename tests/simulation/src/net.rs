//! The network between workers and coordinators: streams of frames, with everything that happens to them.
//!
//! A stream keeps the order of its frames, as TCP does, and holds them back while its link is blocked. What is
//! in flight is lost when it is cut. Of two streams each has its own pace: an old one's last frames may come
//! after the next one's first.

use crate::host::{HostId, Kind, Life};
use crate::stats::Count;
use crate::world::{At, Inner};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tranche_coordinator::dispatch::OUTBOUND_BOUND;
use tranche_coordinator::grpc::worker::serve;
use tranche_proto::v1;
use tranche_proto::v1::attach_request::Frame as Up;
use tranche_proto::v1::attach_response::Frame as Down;

/// Which stream.
pub(crate) type StreamId = u64;

/// Which way a frame travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the coordinator.
    Up,
    /// To the worker.
    Down,
}

/// What travels.
#[derive(Clone)]
pub(crate) enum Item {
    /// A worker's frame.
    Request(v1::AttachRequest),
    /// The stream was taken.
    Taken,
    /// A coordinator's frame, or why it ends the stream.
    Response(Result<v1::AttachResponse, Status>),
    /// Nothing more comes.
    End,
}

type ToCoordinator = mpsc::UnboundedSender<Result<v1::AttachRequest, Status>>;
/// What a worker receives: first that the stream was taken.
pub(crate) type ToWorker = mpsc::UnboundedSender<Result<Option<v1::AttachResponse>, Status>>;

/// A stream.
struct Stream {
    worker: (HostId, Life),
    coordinator: (HostId, Life),
    up: Option<ToCoordinator>,
    down: Option<ToWorker>,
    /// No frame arrives before the one before it.
    last: [At; 2],
    /// Frames that wait until the link isn't blocked any more.
    held: [VecDeque<Item>; 2],
    cut: bool,
}

/// A worker's way to a coordinator.
#[derive(Default)]
struct Link {
    /// Blocked until then, each way.
    blocked: [At; 2],
    /// Which of its streams the newest arrived frame was of.
    newest: StreamId,
}

/// All streams and links.
#[derive(Default)]
pub(crate) struct Net {
    streams: BTreeMap<StreamId, Stream>,
    links: BTreeMap<(HostId, HostId), Link>,
    next: StreamId,
}

impl Inner {
    fn delay(&mut self) -> Duration {
        if self.chance(self.knobs.late) {
            self.count(Count::FrameLate);
            return self.ms(100, 1200);
        }
        self.ms(0, 20)
    }

    fn blocked(&self, worker: HostId, coordinator: HostId, way: Way) -> Option<At> {
        let link = self.net.links.get(&(worker, coordinator))?;
        Some(link.blocked[way as usize]).filter(|until| *until > self.now)
    }

    /// Blocks a link one way or both.
    pub(crate) fn block(&mut self, worker: HostId, coordinator: HostId, ways: &[Way], pause: Duration) {
        let until = self.now + pause;
        let link = self.net.links.entry((worker, coordinator)).or_default();
        for way in ways {
            link.blocked[*way as usize] = link.blocked[*way as usize].max(until);
        }
        self.at(until, move |inner| inner.unblock(worker, coordinator));
    }

    fn unblock(&mut self, worker: HostId, coordinator: HostId) {
        for way in [Way::Up, Way::Down] {
            if self.blocked(worker, coordinator, way).is_some() {
                continue;
            }
            let of_link = |stream: &Stream| stream.worker.0 == worker && stream.coordinator.0 == coordinator;
            let ids: Vec<StreamId> =
                self.net.streams.iter().filter(|(_, s)| of_link(s)).map(|(id, _)| *id).collect();
            for id in ids {
                let held = self
                    .net
                    .streams
                    .get_mut(&id)
                    .map(|stream| std::mem::take(&mut stream.held[way as usize]));
                for item in held.into_iter().flatten() {
                    self.arrive(id, way, item);
                }
            }
        }
    }

    /// All links are as they should be from now on.
    pub(crate) fn unblock_all(&mut self) {
        let now = self.now;
        let links: Vec<(HostId, HostId)> = self.net.links.keys().copied().collect();
        for (worker, coordinator) in links {
            if let Some(link) = self.net.links.get_mut(&(worker, coordinator)) {
                link.blocked = [now; 2];
            }
            self.unblock(worker, coordinator);
        }
    }

    /// A worker dials; the answer says whether somebody is there.
    pub(crate) fn dial(
        &mut self,
        worker: (HostId, Life),
        url: &str,
        reply: oneshot::Sender<Result<HostId, Status>>,
    ) {
        let found = url.strip_prefix("http://").and_then(|name| self.hosts.named(name));
        let Some(coordinator) = found else {
            return drop(reply.send(Err(Status::unavailable("no such host"))));
        };
        let pause = self.delay();
        self.after(pause, move |inner| {
            let ways = [Way::Up, Way::Down];
            if ways.iter().any(|way| inner.blocked(worker.0, coordinator, *way).is_some()) {
                // Nobody answers; the caller's patience ends by itself.
                inner.never.push(Box::new(reply));
                return;
            }
            let refused = inner.chance(inner.knobs.refuse);
            if refused {
                inner.count(Count::DialRefused);
            }
            let there = inner.hosts.of(coordinator).up && inner.hosts.of(coordinator).node.is_some();
            let answer = if there && !refused {
                Ok(coordinator)
            } else {
                Err(Status::unavailable("connection refused"))
            };
            inner.hosts.touch(worker.0);
            let _ = reply.send(answer);
        });
    }

    /// A worker opens a stream on a connection.
    pub(crate) fn open(&mut self, worker: (HostId, Life), coordinator: HostId, down: ToWorker) -> StreamId {
        self.net.next += 1;
        let id = self.net.next;
        let life = self.hosts.of(coordinator).life;
        let stream = Stream {
            worker,
            coordinator: (coordinator, life),
            up: None,
            down: Some(down),
            last: [self.now; 2],
            held: Default::default(),
            cut: false,
        };
        self.net.streams.insert(id, stream);
        let pause = self.delay();
        if let Some(stream) = self.net.streams.get_mut(&id) {
            stream.last[0] = self.now + pause;
        }
        self.after(pause, move |inner| inner.accept(id));
        id
    }

    /// The stream's head reached the coordinator.
    fn accept(&mut self, id: StreamId) {
        let Some(stream) = self.net.streams.get_mut(&id) else { return };
        let (host, life) = stream.coordinator;
        let seen = self.hosts.of(host);
        let serving = seen.node.clone().filter(|_| seen.up && seen.life == life);
        let (Some((node, shutdown)), Some(handle)) = (serving, seen.handle.clone()) else {
            return self.break_stream(id);
        };
        let (sender, frames) = mpsc::unbounded_channel();
        stream.up = Some(sender);
        let peer = self.hosts.of(self.net.streams[&id].worker.0).name.clone();
        let Some(world) = self.world() else { return };
        self.hosts.touch(host);
        handle.spawn(async move {
            let (out, mut responses) = mpsc::channel(OUTBOUND_BOUND);
            let pump = async {
                world.lock().send(id, Way::Down, Item::Taken);
                while let Some(response) = responses.recv().await {
                    world.lock().send(id, Way::Down, Item::Response(response));
                }
                world.lock().send(id, Way::Down, Item::End);
            };
            let served = async {
                if let Err(status) =
                    serve(node, UnboundedReceiverStream::new(frames), peer, &out, shutdown).await
                {
                    // The worker may not be reading: then there is nobody to tell.
                    let _ = out.try_send(Err(status));
                }
                drop(out);
            };
            tokio::join!(served, pump);
        });
    }

    /// A frame begins its way.
    pub(crate) fn send(&mut self, id: StreamId, way: Way, item: Item) {
        let Some(stream) = self.net.streams.get(&id).filter(|stream| !stream.cut) else { return };
        let worker = stream.worker;
        self.count(Count::Frame);
        self.sent(id, worker, &item);
        if self.trace.printed() {
            self.say(|| format!("  #{id} {}", describe(&item)));
        }
        let bytes = normalised(&item);
        let now = self.now;
        self.trace.hash(now, if way == Way::Up { "up" } else { "down" }, &bytes);
        let pause = self.delay();
        let now = self.now;
        let Some(stream) = self.net.streams.get_mut(&id) else { return };
        let at = (now + pause).max(stream.last[way as usize]);
        stream.last[way as usize] = at;
        if self.chance(self.knobs.twice) && repeatable(&item) {
            self.count(Count::FrameTwice);
            let copy = item.clone();
            // A report may come again at any time, as its worker repeats it; the others only at once.
            let again = if matches!(&item, Item::Request(frame) if matches!(frame.frame, Some(Up::Report(_))))
            {
                at + self.ms(0, 800)
            } else {
                at
            };
            self.at(at, move |inner| inner.arrive(id, way, item));
            return self.at(again, move |inner| inner.arrive(id, way, copy));
        }
        self.at(at, move |inner| inner.arrive(id, way, item));
    }

    fn arrive(&mut self, id: StreamId, way: Way, item: Item) {
        let Some(stream) = self.net.streams.get(&id).filter(|stream| !stream.cut) else { return };
        let (worker, coordinator) = (stream.worker, stream.coordinator);
        let blocked = self.blocked(worker.0, coordinator.0, way).is_some();
        let Some(stream) = self.net.streams.get_mut(&id) else { return };
        if blocked || !stream.held[way as usize].is_empty() {
            return stream.held[way as usize].push_back(item);
        }
        let (host, life) = if way == Way::Up { coordinator } else { worker };
        if !self.hosts.lives(host, life) {
            return;
        }
        let ends = matches!(item, Item::End);
        if let (Way::Down, Item::Response(Ok(response))) = (way, &item) {
            self.heard(worker, response);
        }
        let Some(stream) = self.net.streams.get_mut(&id) else { return };
        // Whoever doesn't listen any more misses nothing.
        match (way, item) {
            (Way::Up, Item::Request(frame)) => {
                if let Some(up) = &stream.up {
                    let _ = up.send(Ok(frame));
                }
            }
            (Way::Down, Item::Taken) => {
                if let Some(down) = &stream.down {
                    let _ = down.send(Ok(None));
                }
            }
            (Way::Down, Item::Response(response)) => {
                if let Some(down) = &stream.down {
                    let _ = down.send(response.map(Some));
                }
            }
            (Way::Up, Item::End) => stream.up = None,
            (Way::Down, Item::End) => stream.down = None,
            (Way::Up, Item::Taken | Item::Response(_)) | (Way::Down, Item::Request(_)) => {}
        }
        if ends && stream.up.is_none() && stream.down.is_none() {
            self.net.streams.remove(&id);
        }
        self.hosts.touch(host);
        if way == Way::Up {
            let link = self.net.links.entry((worker.0, coordinator.0)).or_default();
            if link.newest > id {
                self.count(Count::FrameReordered);
            } else {
                link.newest = id;
            }
        }
    }

    /// The worker listens no more: the coordinator hears of it after what is in flight.
    pub(crate) fn hang_up(&mut self, id: StreamId) {
        self.send(id, Way::Up, Item::End);
        if let Some(stream) = self.net.streams.get_mut(&id) {
            stream.down = None;
        }
    }

    /// Cuts a stream: what is in flight is lost. Either side may hear of it late, or not at all.
    pub(crate) fn break_stream(&mut self, id: StreamId) {
        let Some(stream) = self.net.streams.get_mut(&id).filter(|stream| !stream.cut) else { return };
        stream.cut = true;
        for way in [Way::Up, Way::Down] {
            if self.rng.u8(0..4) == 0 {
                continue;
            }
            let pause = self.ms(0, 100);
            self.after(pause, move |inner| {
                let Some(stream) = inner.net.streams.get_mut(&id) else { return };
                let reset = || Status::unavailable("connection reset");
                let host = match way {
                    Way::Up => {
                        if let Some(up) = stream.up.take() {
                            let _ = up.send(Err(reset()));
                        }
                        stream.coordinator.0
                    }
                    Way::Down => {
                        if let Some(down) = stream.down.take() {
                            let _ = down.send(Err(reset()));
                        }
                        stream.worker.0
                    }
                };
                inner.hosts.touch(host);
            });
        }
    }

    /// The streams between these two that aren't cut; `None`: any.
    pub(crate) fn streams_of(&self, host: HostId) -> Vec<StreamId> {
        let of_host = |stream: &Stream| stream.worker.0 == host || stream.coordinator.0 == host;
        self.net.streams.iter().filter(|(_, s)| !s.cut && of_host(s)).map(|(id, _)| *id).collect()
    }

    /// A host was lost: its streams end, at the other side sooner or later.
    pub(crate) fn host_lost(&mut self, host: HostId) {
        for id in self.streams_of(host) {
            let kind = self.hosts.of(host).kind;
            if let Some(stream) = self.net.streams.get_mut(&id) {
                match kind {
                    Kind::Coordinator => stream.up = None,
                    Kind::Worker | Kind::Clients => stream.down = None,
                }
            }
            self.break_stream(id);
        }
    }
}

/// Whether a frame may come twice and change nothing the second time.
fn repeatable(item: &Item) -> bool {
    match item {
        Item::Request(request) => {
            matches!(request.frame, Some(Up::Report(_) | Up::Heartbeat(_) | Up::Credit(_) | Up::PhaseAck(_)))
        }
        Item::Response(Ok(response)) => matches!(
            response.frame,
            Some(Down::Ack(_) | Down::PhaseChanged(_) | Down::Revoke(_) | Down::Replicas(_) | Down::Owner(_))
        ),
        Item::Response(Err(_)) | Item::Taken | Item::End => false,
    }
}

/// The frame's bytes, without what no two runs share.
fn normalised(item: &Item) -> Vec<u8> {
    use prost::Message as _;
    match item {
        Item::Request(request) => {
            let mut request = request.clone();
            if let Some(Up::Hello(hello)) = &mut request.frame {
                hello.incarnation.clear();
            }
            request.encode_to_vec()
        }
        Item::Response(Ok(response)) => response.encode_to_vec(),
        Item::Response(Err(status)) => status.message().as_bytes().to_vec(),
        Item::Taken => b"taken".to_vec(),
        Item::End => b"end".to_vec(),
    }
}

fn describe(item: &Item) -> String {
    match item {
        Item::Request(request) => format!("^ {:?}", request.frame),
        Item::Response(Ok(response)) => match &response.frame {
            Some(Down::Grant(grant)) => {
                let mut grant = grant.clone();
                grant.tasks.clear();
                format!("v {grant:?}")
            }
            frame => format!("v {frame:?}"),
        },
        Item::Response(Err(status)) => format!("v {status}"),
        Item::Taken => "v taken".to_owned(),
        Item::End => "end".to_owned(),
    }
}
