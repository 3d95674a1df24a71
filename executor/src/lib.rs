//! One build, from a plan to a pushed image.
