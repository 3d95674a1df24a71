//! RUN for another architecture than this machine's: possible where the kernel hands such programs to an emulator
//! (binfmt_misc). Whether it does is found out by running a program of a few bytes: the kernel's list is seldom mounted
//! in a pod, and the emulator serves the pod all the same.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};

use kiln_oci::Platform;
use kiln_plan::{Base, BuildPlan, Op, Stage, Verdict};

use crate::error::BuildError;
use crate::session::Session;

/// Fails with the first RUN of the plan that this machine can't run.
pub(crate) fn check(session: &Session, plan: &BuildPlan) -> Result<(), BuildError> {
    let host = Platform::host();
    let mut runs: Vec<String> = vec![host.architecture.clone()];
    for stage in plan.stages.iter().filter(|stage| stage.needed) {
        if roots_in_scratch(plan, stage) {
            // Whose files come from elsewhere may well run here: the kernel says.
            continue;
        }
        let platform = &stage.files;
        for step in &stage.steps {
            let needs = matches!(step.op, Op::Run(_)) && matches!(step.verdict, Verdict::Run { .. });
            if !needs || runs.contains(&platform.architecture) {
                continue;
            }
            if can_run(session, &platform.architecture)? {
                runs.push(platform.architecture.clone());
                continue;
            }
            let hint = "COPY, ADD and metadata work for any platform; for RUN, register an emulator on the node \
                        (binfmt_misc with the flag F), or build on a machine of that platform and join the images \
                        with `executor push --index`";
            return Err(session.at(
                step.span,
                format!("a program for {platform} can't run on this machine, which is {host}"),
                Some(hint.to_owned()),
            ));
        }
    }
    Ok(())
}

/// Whether nothing but the build itself puts files into a stage.
fn roots_in_scratch(plan: &BuildPlan, stage: &Stage) -> bool {
    match &stage.base {
        Base::Scratch => true,
        Base::Image(_) => false,
        Base::Stage(base) => roots_in_scratch(plan, &plan.stages[*base]),
    }
}

/// Whether the kernel runs a program for `architecture`.
fn can_run(session: &Session, architecture: &str) -> Result<bool, BuildError> {
    let Some(program) = program(architecture) else { return Ok(false) };
    let path = session.directory("emulation")?.join(architecture);
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new();
        file.write(true).create(true).truncate(true).mode(0o755).open(&path)?.write_all(&program)
    };
    write().map_err(|source| BuildError::Write { path: path.clone(), source })?;
    let mut command = Command::new(&path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).env_clear();
    Ok(command.status().is_ok_and(|status| status.success()))
}

/// One processor: how its ELF files begin, and code that ends a process with 0.
struct Machine {
    name: &'static str,
    /// `e_machine`.
    number: u16,
    wide: bool,
    big_endian: bool,
    flags: u32,
    /// The bytes of the instructions.
    code: &'static [u8],
}

/// The system call `exit(0)` in the words of each processor.
const MACHINES: [Machine; 9] = [
    Machine {
        name: "amd64",
        number: 62,
        wide: true,
        big_endian: false,
        flags: 0,
        // mov eax, 60; xor edi, edi; syscall
        code: &[0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05],
    },
    Machine {
        name: "386",
        number: 3,
        wide: false,
        big_endian: false,
        flags: 0,
        // mov eax, 1; xor ebx, ebx; int 0x80
        code: &[0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80],
    },
    Machine {
        name: "arm64",
        number: 183,
        wide: true,
        big_endian: false,
        flags: 0,
        // mov x0, #0; mov x8, #93; svc #0
        code: &[0x00, 0x00, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4],
    },
    Machine {
        name: "arm",
        number: 40,
        wide: false,
        big_endian: false,
        flags: 0x0500_0000,
        // mov r0, #0; mov r7, #1; svc #0
        code: &[0x00, 0x00, 0xa0, 0xe3, 0x01, 0x70, 0xa0, 0xe3, 0x00, 0x00, 0x00, 0xef],
    },
    Machine {
        name: "riscv64",
        number: 243,
        wide: true,
        big_endian: false,
        flags: 0x5,
        // li a0, 0; li a7, 93; ecall
        code: &[0x13, 0x05, 0x00, 0x00, 0x93, 0x08, 0xd0, 0x05, 0x73, 0x00, 0x00, 0x00],
    },
    Machine {
        name: "ppc64le",
        number: 21,
        wide: true,
        big_endian: false,
        flags: 2,
        // li r0, 1; li r3, 0; sc
        code: &[0x01, 0x00, 0x00, 0x38, 0x00, 0x00, 0x60, 0x38, 0x02, 0x00, 0x00, 0x44],
    },
    Machine {
        name: "s390x",
        number: 22,
        wide: true,
        big_endian: true,
        flags: 0,
        // lghi %r2, 0; svc 1
        code: &[0xa7, 0x29, 0x00, 0x00, 0x0a, 0x01],
    },
    Machine {
        name: "loong64",
        number: 258,
        wide: true,
        big_endian: false,
        flags: 0x43,
        // ori a7, zero, 93; or a0, zero, zero; syscall 0
        code: &[0x0b, 0x74, 0x81, 0x03, 0x04, 0x00, 0x15, 0x00, 0x00, 0x00, 0x2b, 0x00],
    },
    Machine {
        name: "mips64le",
        number: 8,
        wide: true,
        big_endian: false,
        flags: 0x8000_0000,
        // li v0, 5058; move a0, zero; syscall
        code: &[0xc2, 0x13, 0x02, 0x24, 0x25, 0x20, 0x00, 0x00, 0x0c, 0x00, 0x00, 0x00],
    },
];

/// An ELF program for `architecture` that ends with 0: one header, one segment, a few instructions.
fn program(architecture: &str) -> Option<Vec<u8>> {
    const BASE: u64 = 0x10000;
    let machine = MACHINES.iter().find(|machine| machine.name == architecture)?;
    let (header, segment): (u64, u64) = if machine.wide { (64, 56) } else { (52, 32) };
    let size = header + segment + machine.code.len() as u64;
    let mut file = Image { bytes: Vec::new(), big_endian: machine.big_endian, wide: machine.wide };
    file.bytes.extend([0x7f, b'E', b'L', b'F', if machine.wide { 2 } else { 1 }]);
    file.bytes.extend([if machine.big_endian { 2 } else { 1 }, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.half(2);
    file.half(machine.number);
    file.word(1);
    file.address(BASE + header + segment);
    file.address(header);
    file.address(0);
    file.word(machine.flags);
    for value in [header, segment, 1, 0, 0, 0] {
        file.half(u16::try_from(value).unwrap_or(0));
    }
    file.word(1);
    if machine.wide {
        file.word(5);
    }
    file.address(0);
    file.address(BASE);
    file.address(BASE);
    file.address(size);
    file.address(size);
    if !machine.wide {
        file.word(5);
    }
    file.address(BASE);
    file.bytes.extend(machine.code);
    Some(file.bytes)
}

/// Numbers as one kind of processor stores them.
struct Image {
    bytes: Vec<u8>,
    big_endian: bool,
    wide: bool,
}

impl Image {
    fn half(&mut self, value: u16) {
        self.bytes.extend(if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() });
    }

    fn word(&mut self, value: u32) {
        self.bytes.extend(if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() });
    }

    fn address(&mut self, value: u64) {
        match (self.wide, self.big_endian) {
            (true, true) => self.bytes.extend(value.to_be_bytes()),
            (true, false) => self.bytes.extend(value.to_le_bytes()),
            (false, _) => self.word(u32::try_from(value).unwrap_or(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(program: &[u8], emulator: Option<&str>) -> Option<bool> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(&path)
            .unwrap()
            .write_all(program)
            .unwrap();
        let mut command = match emulator {
            Some(emulator) => Command::new(emulator),
            None => Command::new(&path),
        };
        if emulator.is_some() {
            command.arg(&path);
        }
        command.status().ok().map(|status| status.success())
    }

    #[test]
    fn the_program_for_this_machine_ends_well() {
        let program = program(&Platform::host().architecture).expect("this machine is in the table");
        assert_eq!(runs(&program, None), Some(true));
    }

    #[test]
    fn every_program_ends_well_under_its_emulator() {
        let emulators = [
            ("arm64", "qemu-aarch64"),
            ("arm", "qemu-arm"),
            ("386", "qemu-i386"),
            ("riscv64", "qemu-riscv64"),
            ("ppc64le", "qemu-ppc64le"),
            ("s390x", "qemu-s390x"),
            ("loong64", "qemu-loongarch64"),
            ("mips64le", "qemu-mips64el"),
        ];
        for (architecture, emulator) in emulators {
            // Where no emulator is installed, the layout of the header is what can be checked.
            let program = program(architecture).unwrap();
            assert_eq!(&program[..4], b"\x7fELF");
            assert_ne!(runs(&program, Some(emulator)), Some(false), "{architecture}");
        }
    }
}
