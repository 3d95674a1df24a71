//! Stages to steps with cache keys, and what to reuse, run or skip. Pure.
