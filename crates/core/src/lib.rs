//! tranship-core
