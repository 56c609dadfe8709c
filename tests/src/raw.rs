//! HTTP/2 by hand: frames as bytes, in whatever order and number a test likes.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// Types of frames.
#[allow(missing_docs, reason = "RFC 9113, section 6")]
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// The last DATA or HEADERS of a stream.
pub const END_STREAM: u8 = 1;
/// An answer to SETTINGS or PING.
pub const ACK: u8 = 1;
/// The last of a block of headers.
pub const END_HEADERS: u8 = 4;
/// The setting of a stream's window.
pub const INITIAL_WINDOW_SIZE: u16 = 4;
/// An error code.
pub const REFUSED_STREAM: u32 = 7;
/// An error code.
pub const CANCEL: u32 = 8;
/// An error code.
pub const ENHANCE_YOUR_CALM: u32 = 11;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long the other side may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// What is in it.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a RST_STREAM, or of a GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == kind::GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }

    /// The last stream that a GOAWAY says was taken up.
    pub fn last_stream(&self) -> u32 {
        u32::from_be_bytes(self.payload[..4].try_into().expect("four bytes"))
    }

    /// What a GOAWAY says.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.payload[8..]).into_owned()
    }
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).expect("small").to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header that isn't compressed.
pub fn header(name: &str, value: &str) -> Vec<u8> {
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

/// The headers of a call.
pub const fn call(path: &str) -> [(&str, &str); 6] {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
}

/// A block of headers.
pub fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    headers.iter().flat_map(|(name, value)| header(name, value)).collect()
}

/// A message as gRPC frames it.
pub fn message(bytes: &[u8]) -> Vec<u8> {
    let mut all = vec![0];
    all.extend(u32::try_from(bytes.len()).expect("small").to_be_bytes());
    all.extend(bytes);
    all
}

/// A whole call of one message.
pub fn whole_call(stream: u32, path: &str, bytes: &[u8]) -> Vec<u8> {
    let mut all = frame(kind::HEADERS, END_HEADERS, stream, &block(&call(path)));
    all.extend(frame(kind::DATA, END_STREAM, stream, &message(bytes)));
    all
}

/// A connection.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
}

impl Raw {
    /// A connection on which nothing was said.
    pub async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("a listener");
        stream.set_nodelay(true).expect("a socket");
        Self { stream }
    }

    /// The same, from an address of loopback, with a small receive buffer.
    pub async fn connect_from(address: &str, ip: [u8; 4]) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from((ip, 0))).expect("an address of loopback");
        socket.set_recv_buffer_size(4096).expect("a socket");
        let stream = socket.connect(address.parse().expect("an address")).await.expect("a listener");
        Self { stream }
    }

    /// A connection that has begun in order, with these settings.
    pub async fn open(address: &str, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self::connect(address).await;
        raw.begin(settings).await;
        raw
    }

    /// Says what every connection begins with.
    pub async fn begin(&mut self, settings: &[(u16, u32)]) {
        let values: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| [name.to_be_bytes().to_vec(), value.to_be_bytes().to_vec()].concat())
            .collect();
        self.send(PREFACE).await.expect("open");
        self.send(&frame(kind::SETTINGS, 0, 0, &values)).await.expect("open");
    }

    /// The preface alone.
    pub async fn preface(&mut self) {
        self.send(PREFACE).await.expect("open");
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The other side closed.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sent = tokio::time::timeout(PATIENCE, self.stream.write_all(bytes)).await;
        sent.unwrap_or_else(|_| panic!("the other side neither reads nor closes"))
    }

    /// The next frame. `None`: the connection is closed, or broken.
    pub async fn next(&mut self) -> Option<Frame> {
        let next = async {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; length as usize];
            self.stream.read_exact(&mut payload).await.ok()?;
            Some(Frame { kind: head[3], flags: head[4], stream, payload })
        };
        let next = tokio::time::timeout(PATIENCE, next).await;
        next.unwrap_or_else(|_| panic!("the other side neither speaks nor closes"))
    }

    /// The next frame of this type. `None`: the connection is closed before.
    pub async fn find(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let next = self.next().await?;
            if next.kind == kind {
                return Some(next);
            }
        }
    }

    /// Waits until all that was sent was looked at. False: the connection is closed.
    pub async fn settled(&mut self) -> bool {
        if self.send(&frame(kind::PING, 0, 0, b"settled?")).await.is_err() {
            return false;
        }
        while let Some(next) = self.next().await {
            if next.kind == kind::PING && next.flags == ACK {
                return next.payload == b"settled?";
            }
        }
        false
    }

    /// Waits for the end, and returns the GOAWAY if there was one.
    pub async fn ended(&mut self) -> Option<Frame> {
        let mut goaway = None;
        while let Some(next) = self.next().await {
            if next.kind == kind::GOAWAY {
                goaway = Some(next);
            }
        }
        goaway
    }
}
