//! For tests only: a loopback registry with scripted faults, layer builders, trees as text.
