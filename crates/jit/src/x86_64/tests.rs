//! Every form of every instruction that is emitted decodes to what was asked for; what is better than instruction by
//! instruction shows in the code.

mod encoding;
mod known;
mod peepholes;
