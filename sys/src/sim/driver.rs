//! The driver of a runtime in a modelled world: transfers go to its disk, readiness comes from its
//! network.

use std::io;
use std::os::fd::RawFd;

use super::disk::{Disk, FileId, PAGE_BYTES};
use super::network::SocketId;
use super::{Due, Owner, World};
use crate::runtime::{
    Driver, DriverCall, DriverEvent, DriverKind, DriverOutcome, DriverRequest, DriverToken,
    DriverWait,
};

pub(crate) struct SimDriver {
    world: World,
    runtime: u64,
}

/// A read under way. Its memory stays with the table of operations until its event was told, or
/// until it is cancelled, which takes it out of the world's events.
pub(super) struct Read {
    file: FileId,
    position: u64,
    memory: *mut u8,
    bytes: u32,
}

impl SimDriver {
    /// The driver of the runtime with this number.
    pub(crate) fn new(world: World, runtime: u64) -> Self {
        world.inner.news.borrow_mut().push((runtime, Vec::new()));
        Self { world, runtime }
    }

    fn tell(&self, token: DriverToken, outcome: DriverOutcome) {
        self.world.news(self.runtime, DriverEvent::Completed { token, outcome });
    }
}

impl Driver for SimDriver {
    unsafe fn submit(&mut self, token: DriverToken, request: DriverRequest) {
        let DriverRequest { kind, descriptor, memory, bytes, position } = request;
        let owner = Owner { runtime: self.runtime, token };
        let file = FileId(descriptor.cast_unsigned());
        let world = &self.world;
        let faults = world.inner.faults.get();
        world.note("submit", kind as u64, position, u64::from(bytes));
        // A part of a transfer is whole pages: what is left is asked for again.
        let pages = u64::from(bytes) / PAGE_BYTES as u64;
        let short = 1 < pages && world.fails(faults.short);
        if short {
            world.count(|happened| &mut happened.short);
        }
        let part = match short {
            true => world.choice().between(1, pages - 1) as u32 * PAGE_BYTES as u32,
            false => bytes,
        };
        match kind {
            DriverKind::Write | DriverKind::WriteDurable => {
                // SAFETY: readable until the completion is told, by this function's contract.
                let data = unsafe { std::slice::from_raw_parts(memory, bytes as usize) };
                let write = world.disk().begin_write(file, position, data);
                let failed = world.fails(faults.write_error);
                let durable = kind == DriverKind::WriteDurable;
                let in_ns = world.transfer_ns();
                world
                    .schedule(in_ns, Due::WriteEnds { owner, write, bytes: part, durable, failed });
            }
            DriverKind::Flush => {
                let flush = world.disk().begin_flush(file);
                world.schedule_flush(owner, flush);
            }
            DriverKind::Read => {
                let read = Read { file, position, memory, bytes: part };
                let failed = world.fails(faults.read_error);
                let in_ns = world.transfer_ns();
                world.schedule(in_ns, Due::ReadEnds { owner, read, failed });
            }
        }
    }

    fn cancel(&mut self, token: DriverToken) {
        // What was written stays on its way: a device does not stop for a process that is gone.
        let runtime = self.runtime;
        self.world.inner.events.borrow_mut().retain(|_, due| match due {
            Due::ReadEnds { owner, .. } => owner.runtime != runtime || owner.token != token,
            _ => true,
        });
        self.tell(token, DriverOutcome::Failed(libc::ECANCELED));
    }

    fn call(&mut self, token: Option<DriverToken>, call: DriverCall) -> io::Result<()> {
        call();
        if let Some(token) = token {
            self.tell(token, DriverOutcome::Done);
        }
        Ok(())
    }

    fn watch(&mut self, token: DriverToken, descriptor: RawFd) -> io::Result<()> {
        self.world.network().watch(SocketId::of(descriptor), self.runtime, token);
        Ok(())
    }

    fn watch_writable(&mut self, token: DriverToken, _descriptor: RawFd) -> io::Result<()> {
        // A modelled network always takes a datagram; it may lose it.
        let event = DriverEvent::Ready { token, readable: false, writable: true };
        self.world.news(self.runtime, event);
        Ok(())
    }

    fn unwatch(&mut self, _token: DriverToken, descriptor: RawFd) {
        self.world.network().unwatch(SocketId::of(descriptor));
    }

    fn poll(&mut self, _wait: DriverWait, news: &mut Vec<DriverEvent>) -> io::Result<()> {
        let mut all = self.world.inner.news.borrow_mut();
        if let Some((_, mine)) = all.iter_mut().find(|(of, _)| *of == self.runtime) {
            news.append(mine);
        }
        Ok(())
    }

    fn enters(&self) -> u64 {
        0
    }
}

impl Drop for SimDriver {
    fn drop(&mut self) {
        self.world.inner.news.borrow_mut().retain(|(of, _)| *of != self.runtime);
    }
}

impl Read {
    /// Copies what the disk has, as the read's end.
    pub(super) fn finish(self, disk: &Disk) -> DriverOutcome {
        // SAFETY: the memory is the read's alone until its end is told, see `Read`.
        let out = unsafe { std::slice::from_raw_parts_mut(self.memory, self.bytes as usize) };
        let read = disk.read(self.file, self.position, out);
        DriverOutcome::Bytes(u32::try_from(read).expect("no more than was asked for"))
    }
}
