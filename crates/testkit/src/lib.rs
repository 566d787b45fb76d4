//! tranship-testkit
