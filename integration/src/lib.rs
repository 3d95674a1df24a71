//! Tests that start real things: registries, containers, clouds' stand-ins.
