//! Who sends too much, reads too little or comes too often: dropped with a reason, and no cost to others.

mod connections;
mod floods;
mod open;
mod oversized;
mod slow;
mod world;
