//! tranship-migrate
