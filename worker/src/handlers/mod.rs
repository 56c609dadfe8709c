//! The built-in handlers.

mod noop;
mod params;

pub use noop::Noop;
