//! Guest memory as it was at a moment, in a file without a name.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, MmapRegion,
};

const PAGE: usize = 4096;
const ZEROS: [u8; PAGE] = [0; PAGE];

/// How many pages are read at once.
const CHUNK: usize = 64;

/// Nobody can write it any more.
const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Guest memory as it was at a moment. It takes as much memory as the pages that were not zero.
#[derive(Debug)]
pub(super) struct MemoryImage {
    file: Arc<File>,
    /// Where each range begins in the guest, and its bytes: one after another in the file.
    ranges: Vec<(GuestAddress, u64)>,
}

impl MemoryImage {
    /// Copies guest memory that nobody writes: whole pages.
    ///
    /// # Errors
    ///
    /// The host lacks memory or a descriptor.
    pub(super) fn of(memory: &GuestMemoryMmap) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("guest-memory", flags)?);
        let ranges: Vec<_> = memory.iter().map(|region| (region.start_addr(), region.len())).collect();
        file.set_len(ranges.iter().map(|(_, bytes)| bytes).sum())?;
        let mut end = 0;
        for region in memory.iter() {
            copy(region, &file, end)?;
            end += region.len();
        }
        fcntl_add_seals(&file, SEALS)?;
        Ok(Self { file: Arc::new(file), ranges })
    }

    /// Returns memory with these contents. What is written to it stays there, and takes memory only then.
    ///
    /// # Errors
    ///
    /// The host lacks address space.
    pub(super) fn map(&self) -> io::Result<GuestMemoryMmap> {
        let mut end = 0;
        let map = |&(start, bytes): &(GuestAddress, u64)| {
            let offset = FileOffset::from_arc(Arc::clone(&self.file), end);
            end += bytes;
            map_range(offset, bytes, start)
        };
        let regions = self.ranges.iter().map(map).collect::<io::Result<Vec<_>>>()?;
        GuestMemoryMmap::from_regions(regions).map_err(io::Error::other)
    }
}

fn copy(region: &GuestRegionMmap, file: &File, begin: u64) -> io::Result<()> {
    let mut chunk = vec![ZEROS; CHUNK];
    let mut done = 0;
    while done < region.len() {
        let left = usize::try_from(region.len() - done).unwrap_or(usize::MAX);
        chunk.truncate((left / PAGE).max(1));
        region.read_slice(chunk.as_flattened_mut(), MemoryRegionAddress(done)).map_err(io::Error::other)?;
        for run in chunk.chunk_by(|page, next| (*page == ZEROS) == (*next == ZEROS)) {
            let bytes = run.as_flattened();
            if run.first().is_some_and(|page| *page != ZEROS) {
                file.write_all_at(bytes, begin + done)?;
            }
            done += bytes.len() as u64;
        }
    }
    Ok(())
}

fn map_range(offset: FileOffset, bytes: u64, start: GuestAddress) -> io::Result<GuestRegionMmap> {
    let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
    let mapped = MmapRegion::build(Some(offset), bytes, protection, flags).map_err(io::Error::other)?;
    GuestRegionMmap::new(mapped, start).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const HIGH: GuestAddress = GuestAddress(1 << 32);

    fn memory() -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 3 << 20), (HIGH, 1 << 20)]).unwrap();
        memory.write_slice(b"first", GuestAddress(0)).unwrap();
        memory.write_slice(&[7; 3 * PAGE], GuestAddress(0x12_3456)).unwrap();
        memory.write_slice(b"last", GuestAddress((3 << 20) - 4)).unwrap();
        memory.write_slice(b"high", HIGH).unwrap();
        memory
    }

    fn all(memory: &GuestMemoryMmap) -> Vec<u8> {
        let mut bytes = vec![0; 4 << 20];
        let (low, high) = bytes.split_at_mut(3 << 20);
        memory.read_slice(low, GuestAddress(0)).unwrap();
        memory.read_slice(high, HIGH).unwrap();
        bytes
    }

    #[test]
    fn mapped_memory_has_the_contents_of_the_moment() {
        let memory = memory();
        let before = all(&memory);
        let image = MemoryImage::of(&memory).unwrap();
        memory.write_slice(b"later", GuestAddress(0)).unwrap();
        assert!(all(&image.map().unwrap()) == before);
    }

    #[test]
    fn each_mapping_is_written_alone() {
        let image = MemoryImage::of(&memory()).unwrap();
        let [one, other] = [image.map().unwrap(), image.map().unwrap()];
        let before = all(&other);
        one.write_slice(b"mine", GuestAddress(0)).unwrap();
        one.write_slice(b"mine", HIGH).unwrap();
        assert!(all(&other) == before && all(&image.map().unwrap()) == before);
        assert!(all(&MemoryImage::of(&one).unwrap().map().unwrap()) == all(&one));
    }

    #[test]
    fn pages_of_zeros_take_no_memory() {
        let image = MemoryImage::of(&memory()).unwrap();
        // One, four that three reach into, one, one.
        assert_eq!(image.file.metadata().unwrap().blocks() * 512, 7 * PAGE as u64);
    }
}
