//! Where things stand in a control arena.

use skep_maps::MapHeader;
use skep_runtime::image::IMAGE_ALIGN;
use skep_runtime::session::{Control, Link, ProgCell};

use super::SessionError;

/// Rings that every session has, behind the object's maps: their number and their places among themselves.
pub const INTERNAL_MAPS: usize = 2;
pub const SAMPLES: usize = 0;
pub const PRINTK: usize = 1;

/// Offsets in a control arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlLayout {
    pub links: usize,
    pub progs: usize,
    pub map_headers: usize,
    /// Of each program's image.
    pub images: Vec<usize>,
    pub size: usize,
}

impl ControlLayout {
    /// Places tables of these sizes and images of these lengths.
    pub fn new(links: u32, images: &[usize], maps: usize) -> Result<ControlLayout, SessionError> {
        let mut end = size_of::<Control>();
        let mut table = |what, count: usize, size: usize| {
            let start = end.next_multiple_of(64);
            let bytes = count.checked_mul(size).and_then(|bytes| start.checked_add(bytes));
            // Offsets in the head have 32 bits.
            end = bytes.filter(|&end| u32::try_from(end).is_ok()).ok_or(SessionError::TooLarge { what })?;
            Ok::<_, SessionError>(start)
        };
        let links = table("links", links as usize, size_of::<Link>())?;
        let progs = table("programs", images.len(), size_of::<ProgCell>())?;
        let map_headers = table("maps", maps, size_of::<MapHeader>())?;
        let mut places = Vec::with_capacity(images.len());
        for bytes in images {
            let start = end.next_multiple_of(IMAGE_ALIGN);
            places.push(start);
            end = start.checked_add(*bytes).ok_or(SessionError::TooLarge { what: "images" })?;
        }
        Ok(ControlLayout { links, progs, map_headers, images: places, size: end })
    }

    /// Offset of a link's row.
    pub fn link(&self, index: u32) -> usize {
        self.links + index as usize * size_of::<Link>()
    }

    /// Offset of a map's header.
    pub fn map_header(&self, index: usize) -> u64 {
        (self.map_headers + index * size_of::<MapHeader>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps() {
        let l = ControlLayout::new(3, &[100, 1, 64], 5).unwrap();
        assert!(size_of::<Control>() <= l.links);
        assert!(l.links + 3 * size_of::<Link>() <= l.progs);
        assert!(l.progs + 3 * size_of::<ProgCell>() <= l.map_headers);
        assert!(l.map_header(5) as usize <= l.images[0]);
        assert!(l.images.windows(2).all(|w| w[0] < w[1]) && l.images.iter().all(|i| i.is_multiple_of(IMAGE_ALIGN)));
        assert_eq!(l.size, l.images[2] + 64);
        assert!(matches!(ControlLayout::new(u32::MAX, &[], 0), Err(SessionError::TooLarge { what: "links" })));
    }
}
