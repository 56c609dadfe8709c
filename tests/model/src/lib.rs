//! A model of decision, fencing and cancel races.
