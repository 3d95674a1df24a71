//! racy
