//! Build contexts and remote sources; selecting and hashing files.
