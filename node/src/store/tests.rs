//! What the store promises, by subject.

mod model;
mod opening;
mod reading;
mod room;
mod staged;
pub(super) mod support;
mod verifying;
