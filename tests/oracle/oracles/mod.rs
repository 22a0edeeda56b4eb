//! The other implementations, and what each is known to do otherwise than the scanner.

pub mod soketto;
pub mod tungstenite;
pub mod ws;
