//! What the exchange promises, in small worlds in virtual time.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test picks the one action that it is about"
)]

mod blame;
mod chaos;
mod order;
mod pulls;
mod readers;
mod restarts;
mod streams;
mod tags;
mod uploads;
mod world;
