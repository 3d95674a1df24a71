//! Where things are looked up, in order; every fault is a miss.
