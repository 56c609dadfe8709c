//! Tranche under simulated faults.
