//! The built-in handlers.

mod noop;
mod object;
mod params;

pub use noop::Noop;
pub use object::Object;
