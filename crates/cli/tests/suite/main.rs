//! The command as its users run it: the real binary, in an empty directory.

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod cow;
#[cfg(test)]
mod help;
#[cfg(test)]
mod image;
#[cfg(test)]
mod job;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod messages;
#[cfg(test)]
mod metadata;
#[cfg(test)]
mod output;
#[cfg(test)]
mod serve;
#[cfg(test)]
mod session;
