//! Dockerfile text to instructions with spans; word expansion; .dockerignore; lint. Pure.
