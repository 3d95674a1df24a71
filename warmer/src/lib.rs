//! Which images and cached layers a volume should hold, and getting them there.
