//! `sluicegate demo`: a sample backend, the gateway in front of it, and a page that connects through it.
//!
//! [`backend`] is the sample backend with its pages; it knows nothing of the gateway but its URL. The page is opened
//! through the gateway, so its connections are same-origin; the same backend, asked past the gateway, serves the page
//! of a foreign origin.

pub mod backend;
mod room;
