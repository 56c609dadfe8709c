//! The process as one library call.
