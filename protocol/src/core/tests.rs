//! What the exchange promises, in small worlds in virtual time.

mod blame;
mod chaos;
mod pulls;
mod tags;
mod world;
