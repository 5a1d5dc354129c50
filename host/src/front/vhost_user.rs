//! The device as a vhost-user back end.
