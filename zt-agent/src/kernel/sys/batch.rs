// SPDX-License-Identifier: Apache-2.0
//! Many entries of a map with few system calls.

use std::io;
use std::num::NonZero;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::thread;

use aya::Pod;

use super::bpf;

const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;

/// Entries moved in one call.
const BATCH: usize = 4096;

#[repr(C)]
#[derive(Default)]
struct Batch {
    from: u64,
    to_be_continued: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

/// Writes many entries with few system calls, from as many threads as there are CPUs: most of it is the kernel's time.
pub(in crate::kernel) fn update_batch<K, V>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()>
where
    K: Pod + Sync,
    V: Pod + Sync,
{
    debug_assert_eq!(keys.len(), values.len());
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(4);
    let share = keys.len().div_ceil(workers).max(BATCH);
    let write = |keys: &[K], values: &[V]| {
        for (keys, values) in keys.chunks(BATCH).zip(values.chunks(BATCH)) {
            bpf(
                MAP_UPDATE_BATCH,
                &mut Batch {
                    keys: keys.as_ptr() as u64,
                    values: values.as_ptr() as u64,
                    count: keys.len() as u32,
                    map: map.as_raw_fd() as u32,
                    ..Batch::default()
                },
            )?;
        }
        Ok(())
    };
    if keys.len() <= share {
        return write(keys, values);
    }
    thread::scope(|scope| {
        let shares = keys.chunks(share).zip(values.chunks(share));
        let workers: Vec<_> = shares
            .map(|(keys, values)| scope.spawn(move || write(keys, values)))
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a thread that fills a map panicked")))
        })
    })
}

/// Hands on all entries of a hash map, read with few system calls. Entries that come or go meanwhile may be missing or
/// come twice.
pub(in crate::kernel) fn read_each<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    mut each: impl FnMut(K, &V),
) -> io::Result<()> {
    let mut position = 0_u64;
    let mut first = true;
    let mut keys: Vec<K> = Vec::with_capacity(BATCH);
    let mut values: Vec<V> = Vec::with_capacity(BATCH);
    loop {
        let mut next = 0_u64;
        keys.clear();
        values.clear();
        let room = keys.capacity().min(values.capacity());
        let mut batch = Batch {
            from: if first {
                0
            } else {
                std::ptr::from_ref(&position) as u64
            },
            to_be_continued: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room as u32,
            map: map.as_raw_fd() as u32,
            ..Batch::default()
        };
        let done = match bpf(MAP_LOOKUP_BATCH, &mut batch) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A bucket with more entries than the buffer holds: try again with twice the room.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => {
                keys.reserve_exact(2 * room);
                values.reserve_exact(2 * room);
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = (batch.count as usize).min(room);
        // SAFETY: the kernel has filled `count` keys and values, within the capacity; any bytes are a valid `Pod`.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        for (key, value) in keys.iter().zip(&values) {
            each(*key, value);
        }
        if done {
            return Ok(());
        }
        position = next;
        first = false;
    }
}
