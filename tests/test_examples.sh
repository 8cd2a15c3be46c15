#!/bin/sh
# test_examples.sh HELLO LOOKUP SNAPSHOT BACKUP FKV: the example programs run, and say what they should.
set -eu
hello=$1 lookup=$2 snapshot=$3 backup=$4 fkv=$5
directory=$(mktemp -d "${TMPDIR:-/tmp}/fkv-examples-XXXXXX")
trap 'rm -rf "$directory"' EXIT
cd "$directory"

[ "$("$hello")" = "alice has 100" ]
[ "$("$hello")" = "alice has 100" ] # the store exists now

for _ in new exists; do
    printf 'before: account 0 has 100, all have 100000\nafter: account 0 has 5100, all have 100000\n' \
        >snapshot.expected
    "$snapshot" | cmp - snapshot.expected
    "$fkv" check snapshot.fkv >/dev/null
done

for copy in first second; do
    [ "$("$backup" accounts.fkv $copy.fkv 2>progress)" = "the backup's 100000 accounts have 10000000 together" ]
    grep -q '100 %' progress
    "$fkv" check $copy.fkv >/dev/null
done
if "$backup" accounts.fkv first.fkv >/dev/null 2>errors; then exit 1; fi # it is never written over
grep -q 'first.fkv' errors

# More keys than are looked up at a time; one value that has more bytes than there is room for.
i=0
while [ $i -lt 500 ]; do
    echo "key$i"
    i=$((i + 1))
done >keys
long=$(head -c 100000 /dev/zero | tr '\0' x)
{
    echo '# fkv-dump 1'
    sed -n '1,200s/.*/&\tvalue of &/p' keys
    printf 'key499\t%s\n# end 201\n' "$long"
} | "$fkv" load store.fkv
sed -n '1,200s/.*/&: value of &/p' keys >expected
sed -n '201,499s/$/: not found/p' keys >>expected
echo "key499: $long" >>expected
sort expected >expected.sorted

"$lookup" store.fkv <keys | sort | cmp - expected.sorted
{ sleep 0.1; head -c 5000 keys; sleep 0.1; tail -c +5001 keys; } | "$lookup" store.fkv | sort |
    cmp - expected.sorted
printf 'key1' | "$lookup" store.fkv | grep -qx 'key1: value of key1' # the last line without an end
if "$lookup" nothing.fkv </dev/null 2>errors; then exit 1; fi
grep -q 'nothing.fkv' errors
