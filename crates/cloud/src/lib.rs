//! Who we are to the clouds: AWS's keys and request signatures, Google's and Azure's access tokens, found where the
//! clouds' own libraries look for them. Registries and build contexts both need them. It knows neither of the two.
//!
//! Start with [`Environment`] (the snapshot in which everything is looked up) and [`Exchange`] (how a cloud is asked);
//! then [`aws::keys`], [`google::token`] or [`azure::token`].

pub mod aws;
pub mod azure;
mod environment;
mod exchange;
pub mod google;
mod google_aws;
mod sigv4;

pub use environment::Environment;
pub use exchange::{Clock, Exchange, FORM, element, form, member, read_file};
