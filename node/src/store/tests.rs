//! What the store promises, by subject.

mod model;
mod opening;
mod reading;
mod room;
pub(super) mod support;
mod verifying;
