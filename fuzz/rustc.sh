#!/bin/sh
# rustc with libFuzzer's counters in our own crates: what `cargo fuzz run --sanitizer none` passes to all of them. Flags for all
# would mean a second build of every dependency.
rustc=$1
shift
case " $* " in
*" --crate-name rackstep "* | *" --crate-name rackstep_fuzz "*)
  exec "$rustc" "$@" -Cpasses=sancov-module -Ccodegen-units=16 \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
  ;;
esac
exec "$rustc" "$@"
