//! Readiness of the descriptors a runtime watches.
//!
//! The kernel tells of changes (edges); what it told is remembered here until an attempt to read or
//! write finds that it no longer holds. A socket is taken to be writable until it refuses.

use std::os::fd::RawFd;
use std::task::Waker;

use super::driver::{GENERATION_MASK, Token};

#[derive(Default)]
struct Source {
    generation: u32,
    /// None: the entry is free.
    descriptor: Option<RawFd>,
    readable: bool,
    writable: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Grows with the descriptors watched at once.
#[derive(Default)]
pub(super) struct Sources {
    sources: Vec<Source>,
}

impl Sources {
    pub(super) fn insert(&mut self, descriptor: RawFd) -> Token {
        let free = self.sources.iter().position(|source| source.descriptor.is_none());
        let index = free.unwrap_or_else(|| {
            self.sources.push(Source::default());
            self.sources.len() - 1
        });
        let generation = (self.sources[index].generation + 1) & GENERATION_MASK;
        self.sources[index] = Source {
            generation,
            descriptor: Some(descriptor),
            // Not known yet: the first attempt will tell.
            readable: true,
            writable: true,
            reader: None,
            writer: None,
        };
        Token { index: u32::try_from(index).expect("fewer descriptors than 2^32"), generation }
    }

    pub(super) fn remove(&mut self, token: Token) {
        if let Some(source) = self.get(token) {
            *source = Source { generation: source.generation, ..Source::default() };
        }
    }

    pub(super) fn is_readable(&mut self, token: Token) -> bool {
        self.get(token).is_some_and(|source| source.readable)
    }

    /// True if readable; else `waker` is told when it is.
    pub(super) fn poll_readable(&mut self, token: Token, waker: &Waker) -> bool {
        let Some(source) = self.get(token) else { return true };
        if !source.readable {
            source.reader = Some(waker.clone());
        }
        source.readable
    }

    /// None if writable; else `waker` is told when it is, and the descriptor must be watched for it.
    pub(super) fn poll_writable(&mut self, token: Token, waker: &Waker) -> Option<RawFd> {
        let source = self.get(token)?;
        if source.writable {
            return None;
        }
        source.writer = Some(waker.clone());
        source.descriptor
    }

    pub(super) fn clear_readable(&mut self, token: Token) {
        if let Some(source) = self.get(token) {
            source.readable = false;
        }
    }

    pub(super) fn clear_writable(&mut self, token: Token) {
        if let Some(source) = self.get(token) {
            source.writable = false;
        }
    }

    /// What the kernel told; returns who waited for it.
    pub(super) fn ready(
        &mut self,
        token: Token,
        readable: bool,
        writable: bool,
    ) -> [Option<Waker>; 2] {
        let Some(source) = self.get(token) else { return [None, None] };
        source.readable |= readable;
        source.writable |= writable;
        [
            if readable { source.reader.take() } else { None },
            if writable { source.writer.take() } else { None },
        ]
    }

    fn get(&mut self, token: Token) -> Option<&mut Source> {
        let source = self.sources.get_mut(token.index as usize)?;
        (source.generation == token.generation && source.descriptor.is_some()).then_some(source)
    }
}
