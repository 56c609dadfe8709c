//! The frames of one HTTP/2 connection, counted as their bytes go by: nothing is kept of them.
//!
//! h2 bounds what is dear to it: CONTINUATION without an end, streams that are reset before they are taken up, tiny
//! DATA. It answers every PING and every SETTINGS, and reads past PRIORITY, WINDOW_UPDATE, unknown frames and
//! RST_STREAM, for as long as they come. Here each connection has budgets of those. What is sent to a peer earns
//! it some more: WINDOW_UPDATEs for it, a PING to measure the line by (gRPC's rule, too), a reset.

use tokio::time::Instant;

/// PINGs at once, and a second. Keep-alives come every few seconds.
pub(super) const PINGS: (u32, u32) = (100, 10);
/// SETTINGS at once, and a second. A client sends one.
pub(super) const SETTINGS: (u32, u32) = (100, 10);
/// All other frames that aren't DATA, at once, and a second: a client whose deadlines all end at once resets all of its
/// streams ([`super::MAX_STREAMS`]), whose HEADERS came not long before.
pub(super) const OTHERS: (u32, u32) = (4096, 400);
/// What a frame of an answer earns: a WINDOW_UPDATE of the stream, one of the connection, and one to spare.
const EARNED: u32 = 3;
/// As if answers were sent in frames of HTTP/2's default size, whatever size they have.
const USUAL_FRAME: u32 = 16 * 1024;

/// What every connection begins with.
const PREFACE: u32 = 24;
const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS_FRAME: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
/// `ENHANCE_YOUR_CALM`.
const CALM: u32 = 11;

/// So many at once, and so many a second.
#[derive(Debug)]
pub(super) struct Budget {
    left: f64,
    most: f64,
    a_second: f64,
    at: Instant,
}

impl Budget {
    pub(super) fn new((most, a_second): (u32, u32), now: Instant) -> Self {
        Self { left: most.into(), most: most.into(), a_second: a_second.into(), at: now }
    }

    /// False: there is nothing left to spend.
    pub(super) fn spend(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.left < 1.0 && !self.has(now()) {
            return false;
        }
        self.left -= 1.0;
        true
    }

    /// There is something to spend.
    pub(super) fn has(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        self.earn(passed.as_secs_f64() * self.a_second);
        self.left >= 1.0
    }

    /// Nothing of it is spent, or all of that was earned again.
    pub(super) fn is_whole(&mut self, now: Instant) -> bool {
        self.has(now) && self.left >= self.most
    }

    fn earn(&mut self, more: f64) {
        self.left = (self.left + more).min(self.most);
    }
}

/// What there were too many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excess {
    Pings,
    Settings,
    Others,
}

impl Excess {
    /// For the peer, as gRPC's other servers say it.
    pub(super) fn said(self) -> &'static str {
        match self {
            Self::Pings => "too_many_pings",
            Self::Settings => "too_many_settings",
            Self::Others => "too_many_frames",
        }
    }
}

/// Goes through bytes, and finds the heads of frames.
#[derive(Debug)]
struct Heads {
    head: [u8; HEAD],
    have: usize,
    skip: u32,
}

impl Heads {
    fn after(skip: u32) -> Self {
        Self { head: [0; HEAD], have: 0, skip }
    }

    /// Nothing of a frame is missing.
    fn between(&self) -> bool {
        self.have == 0 && self.skip == 0
    }

    /// Calls `on` with each frame's length, type, flags and stream.
    fn go<E>(
        &mut self,
        mut bytes: &[u8],
        mut on: impl FnMut(u32, u8, u8, u32) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let step = bytes.len().min(self.skip as usize);
                self.skip -= step as u32;
                bytes = &bytes[step..];
                continue;
            }
            let step = bytes.len().min(HEAD - self.have);
            self.head[self.have..self.have + step].copy_from_slice(&bytes[..step]);
            self.have += step;
            bytes = &bytes[step..];
            if self.have == HEAD {
                let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.head;
                let length = u32::from_be_bytes([0, l0, l1, l2]);
                (self.have, self.skip) = (0, length);
                on(length, kind, flags, u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]))?;
            }
        }
        Ok(())
    }
}

/// The frames of both directions.
#[derive(Debug)]
pub(super) struct Frames {
    inbound: Heads,
    outbound: Heads,
    came: u64,
    newest: u32,
    pings: Budget,
    settings: Budget,
    others: Budget,
}

impl Frames {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            inbound: Heads::after(PREFACE),
            outbound: Heads::after(0),
            came: 0,
            newest: 0,
            pings: Budget::new(PINGS, now),
            settings: Budget::new(SETTINGS, now),
            others: Budget::new(OTHERS, now),
        }
    }

    /// The preface and a first frame have come.
    pub(super) fn begun(&self) -> bool {
        self.came > 1 || (self.came == 1 && self.inbound.skip == 0)
    }

    /// Bytes that came.
    pub(super) fn came(&mut self, bytes: &[u8]) -> Result<(), Excess> {
        let Self { inbound, came, newest, pings, settings, others, .. } = self;
        inbound.go(bytes, |_, kind, flags, stream| {
            *came += 1;
            let (budget, excess) = match kind {
                DATA => return Ok(()),
                PING if flags & ACK == 0 => (&mut *pings, Excess::Pings),
                SETTINGS_FRAME if flags & ACK == 0 => (&mut *settings, Excess::Settings),
                _ => (&mut *others, Excess::Others),
            };
            if kind == HEADERS {
                *newest = stream.max(*newest);
            }
            if budget.spend(Instant::now) { Ok(()) } else { Err(excess) }
        })
    }

    /// Bytes that were sent.
    pub(super) fn sent(&mut self, bytes: &[u8]) {
        let Self { outbound, pings, others, .. } = self;
        let earned = outbound.go(bytes, |length, kind, _, _| {
            if matches!(kind, DATA | HEADERS) {
                pings.earn(1.0);
                others.earn((EARNED * (1 + length / USUAL_FRAME)).into());
            }
            Ok::<_, std::convert::Infallible>(())
        });
        let Ok(()) = earned;
    }

    /// The last word to a peer that sends too much; `None`: it wouldn't be understood, in the middle of a frame.
    pub(super) fn goodbye(&self, said: &str) -> Option<Vec<u8>> {
        if !self.outbound.between() {
            return None;
        }
        let mut frame = (8 + said.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([GOAWAY, 0, 0, 0, 0, 0]);
        frame.extend(self.newest.to_be_bytes());
        frame.extend(CALM.to_be_bytes());
        frame.extend(said.as_bytes());
        Some(frame)
    }
}

/// What is said of something that may happen very often: so many times a second, and how many weren't said.
#[derive(Debug)]
pub(super) struct Sparingly {
    budget: Budget,
    unsaid: u64,
}

impl Sparingly {
    pub(super) fn new(rate: (u32, u32)) -> Self {
        Self { budget: Budget::new(rate, Instant::now()), unsaid: 0 }
    }

    /// `Some`: it is to be said, after so many that weren't.
    pub(super) fn say(&mut self) -> Option<u64> {
        if self.budget.spend(Instant::now) {
            return Some(std::mem::take(&mut self.unsaid));
        }
        self.unsaid += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn frame(kind: u8, flags: u8, stream: u32, payload: usize) -> Vec<u8> {
        let mut bytes = (payload as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(vec![0; payload]);
        bytes
    }

    fn begun() -> Frames {
        let mut frames = Frames::new(Instant::now());
        assert!(!frames.begun());
        frames.came(&[b'P'; PREFACE as usize]).expect("the preface");
        let settings = frame(SETTINGS_FRAME, 0, 0, 6);
        frames.came(&settings[..14]).expect("a part");
        assert!(!frames.begun());
        frames.came(&settings[14..]).expect("the rest");
        assert!(frames.begun());
        frames
    }

    #[tokio::test(start_paused = true)]
    async fn each_kind_has_its_budget_to_the_last_one() {
        for (kind, budget, excess) in [
            (PING, PINGS.0, Excess::Pings),
            (SETTINGS_FRAME, SETTINGS.0 - 1, Excess::Settings),
            (2, OTHERS.0, Excess::Others),
            (3, OTHERS.0, Excess::Others),
            (8, OTHERS.0, Excess::Others),
            (99, OTHERS.0, Excess::Others),
        ] {
            let mut frames = begun();
            for _ in 0..budget {
                frames.came(&frame(kind, 0, 1, 8)).expect("within the budget");
            }
            assert_eq!(frames.came(&frame(kind, 0, 1, 8)), Err(excess), "{kind}");
            frames.came(&frame(DATA, 0, 1, 8)).expect("DATA is h2's to bound");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_and_answers_earn_more() {
        let mut frames = begun();
        // After one too many nothing is read on: no payload of it is left here.
        let ping = frame(PING, 0, 0, 0);
        let spent = |frames: &mut Frames| while frames.came(&ping).is_ok() {};
        spent(&mut frames);
        tokio::time::advance(Duration::from_secs(1) / PINGS.1).await;
        frames.came(&ping).expect("one more");
        frames.came(&ping).expect_err("not two");
        frames.sent(&frame(DATA, 0, 1, 5));
        frames.came(&ping).expect("for the answer");
        frames.came(&ping).expect_err("not two");
        frames.sent(&frame(SETTINGS_FRAME, ACK, 0, 0));
        frames.came(&ping).expect_err("an acknowledgement earns nothing");
        let update = frame(8, 0, 1, 0);
        while frames.came(&update).is_ok() {}
        frames.sent(&frame(DATA, 0, 1, 100 * 1024));
        for _ in 0..EARNED * 7 {
            frames.came(&update).expect("as for seven frames of the usual size");
        }
        frames.came(&update).expect_err("not more");
    }

    #[tokio::test(start_paused = true)]
    async fn frames_are_found_however_they_are_cut() {
        for cut in [1, 2, 7, 9, 10, 1000] {
            let mut frames = begun();
            let mut bytes = Vec::new();
            for n in 0..PINGS.0 {
                bytes.extend(frame(DATA, 0, 1, n as usize));
                bytes.extend(frame(HEADERS, 5, 2 * n + 1, 30));
                bytes.extend(frame(PING, ACK, 0, 8));
                bytes.extend(frame(PING, 0, 0, 8));
            }
            for part in bytes.chunks(cut) {
                frames.came(part).expect("as many as may be");
            }
            assert_eq!(frames.came(&frame(PING, 0, 0, 8)), Err(Excess::Pings), "{cut}");
            assert_eq!(frames.newest, 2 * PINGS.0 - 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_word_is_a_frame_of_its_own() {
        let mut frames = begun();
        let answer = frame(DATA, 0, 1, 10);
        frames.sent(&answer[..12]);
        assert_eq!(frames.goodbye("calm"), None);
        frames.sent(&answer[12..]);
        let said = frames.goodbye("calm").expect("between two frames");
        assert_eq!(said, [0, 0, 12, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11, b'c', b'a', b'l', b'm']);
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_often_is_said_sparingly() {
        let mut said = Sparingly::new((2, 1));
        assert_eq!([said.say(), said.say(), said.say(), said.say()], [Some(0), Some(0), None, None]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!([said.say(), said.say()], [Some(2), None]);
    }
}
