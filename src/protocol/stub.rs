use super::*;
#[derive(Debug, Clone, Copy)]
pub enum IdentityRule {
    Full,
}
#[derive(Debug, Clone)]
pub struct Protocol;
#[derive(Debug, Clone, Default)]
pub(crate) struct Protocols;
#[derive(Debug)]
pub struct ClientOptions;
impl ClientOptions {
    pub(crate) fn new(_: Option<&str>, _: &crate::limits::Limits, _: &Protocols) -> Self {
        Self
    }
}
impl Protocols {
    pub(crate) fn add(&mut self, _: Protocol) {}
    pub(crate) fn only(&mut self, _: impl IntoIterator<Item = Protocol>) {}
    pub(crate) fn set_identity(&mut self, _: IdentityRule) {}
    pub(crate) fn set_list_parameter(&mut self, _: String) {}
    pub(crate) fn set_digest_field(&mut self, _: Option<String>) {}
    pub(crate) fn decode(&self, _: &Parts, _: bool) -> Option<Exchange> {
        None
    }
}
