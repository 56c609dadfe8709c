//! Where connections come from.

use futures::{Stream, StreamExt as _};
use std::io;
use std::net::IpAddr;
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;

/// The connections of a port, in clear text. The one place where they would be wrapped.
pub fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> + Send + Unpin + 'static {
    TcpListenerStream::new(listener).map(|stream| {
        // An answer is one write: without it the last part of a long one may wait for Nagle's algorithm.
        stream.inspect(|stream| drop(stream.set_nodelay(true)))
    })
}

/// True for an address that other machines can't reach.
pub fn is_loopback(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
    }
}
