use super::*;

fn len_of_packet(ty: ProgType) -> impl FnMut(*mut u8) -> u64 {
    move |ctx| {
        let at = if ty == ProgType::Xdp { skep_runtime::packet::XDP_POINTERS } else { 192 };
        // SAFETY: a packet context has its addresses there.
        let [data, end] = unsafe { std::ptr::read_unaligned(ctx.add(at).cast::<[u64; 2]>()) };
        end - data
    }
}

fn len(ty: ProgType, data: &[u8], ctx: Option<&[u8]>) -> Result<TestOutput, TestRunError> {
    test_run(ty, &TestInput { data: Some(data), ctx, repeat: 0 }, &mut len_of_packet(ty))
}

fn errno(r: Result<TestOutput, TestRunError>) -> Errno {
    match r {
        Err(TestRunError::Refused { errno, .. }) => errno,
        other => panic!("{other:?}"),
    }
}

fn word(at: usize, value: u32, size: usize) -> Vec<u8> {
    let mut ctx = vec![0; size];
    ctx[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    ctx
}

/// All figures here are answers of Linux 6.18.
#[test]
fn sizes_of_packets() {
    for (ty, lengths) in [
        (
            ProgType::SocketFilter,
            [(14, Some(0)), (64, Some(50)), (3712, Some(3698)), (3713, None), (13, None), (0, None)],
        ),
        (ProgType::SchedCls, [(14, Some(14)), (64, Some(64)), (3712, Some(3712)), (3713, None), (13, None), (0, None)]),
    ] {
        for (n, want) in lengths {
            let got = len(ty, &vec![0x11; n], None);
            match want {
                Some(want) => {
                    let got = got.unwrap();
                    assert_eq!((got.retval, got.data.unwrap().len()), (want, n));
                }
                None => assert_eq!(errno(got), Errno::EINVAL),
            }
        }
    }
    assert_eq!(len(ProgType::Xdp, &[0; 3520], None).unwrap().retval, 3520);
    assert_eq!(errno(len(ProgType::Xdp, &[0; 13], None)), Errno::EINVAL);
    let header_is_gone = len(ProgType::SocketFilter, &[0x11; 20], None).unwrap().data.unwrap();
    assert_eq!(header_is_gone, [[0; 14].as_slice(), &[0x11; 6]].concat());
}

#[test]
fn fields_of_an_skb() {
    let field = |packet: &[u8], at: usize| {
        let mut read = |ctx: *mut u8| {
            // SAFETY: within the context.
            u64::from(unsafe { std::ptr::read_unaligned(ctx.add(at).cast::<u32>()) })
        };
        test_run(ProgType::SchedCls, &TestInput { data: Some(packet), ..TestInput::default() }, &mut read)
            .unwrap()
            .retval
    };
    let mut ip = [0u8; 64];
    ip[12] = 8;
    let mut broadcast = [0xff; 64];
    broadcast[12..14].copy_from_slice(&[0x86, 0xdd]);
    let mut raw = [0xff; 64];
    raw[..14].copy_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let rows = [(16, [0x400, 8, 0xdd86, 0x100]), (4, [0, 0, 1, 3]), (40, [1; 4]), (0, [64; 4]), (160, [0; 4])];
    for (at, want) in rows {
        assert_eq!([&[0; 64], &ip, &broadcast, &raw].map(|p| field(p, at)), want, "field at {at}");
    }
}

#[test]
fn contexts_of_an_skb() {
    for at in (0..192).step_by(4) {
        let open = matches!(at, 8 | 32 | 36 | 40 | 48..=64 | 152 | 156 | 164 | 176 | 184 | 188);
        let got = len(ProgType::SchedCls, &[0; 64], Some(&word(at, 1, 192)));
        match open {
            true => {
                let ctx = got.unwrap().ctx.unwrap();
                assert_eq!((get(&ctx, at), get(&ctx, 40), get(&ctx, 160)), (1, 1, 64), "field at {at}");
            }
            false => assert_eq!(errno(got), Errno::EINVAL, "field at {at}"),
        }
    }
    let ctx = |c: &[u8]| len(ProgType::SchedCls, &[0; 64], Some(c));
    for n in [1, 100, 196, 256] {
        assert_eq!(ctx(&vec![0; n]).unwrap().ctx.unwrap().len(), 192);
    }
    assert_eq!(errno(ctx(&[])), Errno::EINVAL);
    assert_eq!(errno(ctx(&word(192, 1, 196))), Errno::E2BIG);
    assert_eq!(errno(ctx(&[0; 5000])), Errno::E2BIG);
    for (at, value, ok) in [(160, 63, false), (160, 64, true), (164, 65535, true), (164, 65536, false)] {
        assert_eq!(ctx(&word(at, value, 192)).is_ok(), ok, "{at} = {value}");
    }
}

#[test]
fn contexts_of_xdp() {
    let md = |data: u32, end: u32| [data.to_ne_bytes(), end.to_ne_bytes(), [0; 4], [0; 4], [0; 4], [0; 4]].concat();
    for ((data, end), want) in [
        ((0, 64), Some(64)),
        ((4, 64), Some(60)),
        ((0, 60), Some(60)),
        ((4, 60), Some(56)),
        ((0, 0), Some(0)),
        ((3, 64), None),
        ((0, 65), None),
        ((220, 256), None),
    ] {
        let packet = vec![7; (end.max(64) as usize) & !1];
        let got = len(ProgType::Xdp, &packet, Some(&md(data, end)));
        match want {
            Some(want) => {
                let got = got.unwrap();
                let ctx = got.ctx.unwrap();
                assert_eq!((got.retval, got.data.unwrap().len()), (want, 64));
                assert_eq!((get(&ctx, 0), get(&ctx, 4), get(&ctx, 12)), (data, end, 0));
            }
            None => assert_eq!(errno(got), Errno::EINVAL, "{data} {end}"),
        }
    }
    let with = |at, value| {
        let mut ctx = md(0, 64);
        ctx[at..at + 4].copy_from_slice(&u32::to_ne_bytes(value));
        len(ProgType::Xdp, &[0; 64], Some(&ctx))
    };
    assert_eq!(get(&with(12, 1).unwrap().ctx.unwrap(), 12), 1);
    assert_eq!(errno(with(12, 1 << 30)), Errno::ENODEV);
    for at in [8, 16, 20] {
        assert_eq!(errno(with(at, 1)), Errno::EINVAL);
    }
}

#[test]
fn registers() {
    let mut third = |ctx: *mut u8| {
        // SAFETY: both contexts are longer.
        unsafe { ctx.cast::<u64>().add(2).read() }
    };
    let mut run = |ty, data, ctx| test_run(ty, &TestInput { data, ctx, repeat: 3 }, &mut third);
    let ctx = [[0u8; 16].as_slice(), &7u64.to_ne_bytes()].concat();
    for ty in [ProgType::Kprobe, ProgType::RawTracepoint] {
        assert_eq!(run(ty, None, Some(&ctx[..])).unwrap().retval, 7);
        assert_eq!(run(ty, None, None).unwrap().retval, 0);
        assert_eq!(errno(run(ty, Some(&[0; 64][..]), None)), Errno::EINVAL);
    }
    assert_eq!(errno(run(ProgType::RawTracepoint, None, Some(&[0; 104][..]))), Errno::EINVAL);
    assert_eq!(errno(run(ProgType::Kprobe, None, Some(&[1; 176][..]))), Errno::E2BIG);
    let other = run(ProgType::SkMsg, None, None).unwrap_err();
    assert!(other.to_string().contains("sk_msg"));
}
