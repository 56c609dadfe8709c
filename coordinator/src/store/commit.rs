//! Transactions whose answer was lost are read back before anything else is done.
