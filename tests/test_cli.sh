#!/bin/sh
# test_cli.sh FKV: the command line program, from outside.
set -u

fkv=$1
directory=$(mktemp -d "${TMPDIR:-/tmp}/fkv-cli-XXXXXX") || exit 1
trap 'rm -rf "$directory"' EXIT
cd "$directory" || exit 1
failed=0

fail() {
    echo "FAILED: $*" >&2
    failed=1
}

# expect STATUS COMMAND...: its output is in out, its errors are in err
expect() {
    expected=$1
    shift
    "$@" >out 2>err </dev/null
    status=$?
    if [ $status -ne "$expected" ]; then
        fail "status $status, not $expected: $*"
        sed 's/^/    /' err >&2
    fi
}

# the same, from this input
expect_from() {
    expected=$1
    input=$2
    shift 2
    "$@" >out 2>err <"$input"
    status=$?
    if [ $status -ne "$expected" ]; then
        fail "status $status, not $expected: $* <$input"
        sed 's/^/    /' err >&2
    fi
}

out_is() {
    [ "$(cat out)" = "$1" ] || fail "printed \"$(cat out)\", not \"$1\""
}

out_has() {
    grep -q -- "$1" out || fail "\"$1\" is not in: $(cat out)"
}

err_has() {
    grep -q -- "$1" err || fail "\"$1\" is not in: $(cat err)"
}

# ---------------------------------------------------------------- help and usage
expect 0 "$fkv" --help
for command in check repair backup stat get put delete dump load; do
    out_has "^  $command"
done
out_has 'Exit status'
expect 0 "$fkv" --version
out_has '^fkv [0-9]*\.[0-9]*\.[0-9]*$'
expect 2 "$fkv"
expect 2 "$fkv" nothing
expect 2 "$fkv" get
expect 2 "$fkv" get s
expect 2 "$fkv" get s k v
expect 2 "$fkv" --nothing
err_has nothing
expect 2 "$fkv" backup s t --rate
err_has 'requires an argument'
grep -q unknown err && fail 'an option without its argument is said to be unknown'
expect 2 "$fkv" check ''
for command in 'stat -q s' 'stat --rate=1M s' 'get -q s k' 'get --digest s k' 'put -p s k v' \
    'put --rate=1M s k v' 'delete -a s k' 'delete --digest s k' 'dump -e s' 'load -e s' 'load -q s' \
    'check -e s' 'check --digest s' 'repair --rate=1M s t' 'backup -a s t' 'backup -e s t'; do
    expect 2 "$fkv" $command
    err_has 'does not have'
done
[ -e s ] && fail 'a command with a wrong option has made a store'
expect 2 "$fkv" -e put s '\q' v
err_has backslash

# ---------------------------------------------------------------- put, get, delete
expect 4 "$fkv" get s key
expect 4 "$fkv" check s
expect 4 "$fkv" stat s
expect 4 "$fkv" delete s key
[ -e s ] && fail 'reading has made a store'
expect 0 "$fkv" put s key value
expect 0 "$fkv" get s key
out_is value
expect 0 "$fkv" put s key other
expect 0 "$fkv" get s key
out_is other
expect 1 "$fkv" get s nokey
err_has 'no such key'
expect 1 "$fkv" delete s nokey
expect 0 "$fkv" put s '' 'the empty key'
expect 0 "$fkv" get s ''
out_is 'the empty key'
expect 0 "$fkv" put s empty ''
expect 0 "$fkv" get s empty
[ -s out ] && fail 'an empty value has bytes'
expect 0 "$fkv" delete s key
expect 1 "$fkv" get s key
expect 0 "$fkv" -e put s '\x00\xff\\' '\x0a#'
expect 0 "$fkv" -e get s '\x00\xff\\'
out_is '\x0a#'
expect 0 "$fkv" put s '#key' '#value'
expect 0 "$fkv" put s -- -k -v
expect 0 "$fkv" get s -- -k
out_is -v
head -c 3000000 /dev/urandom >big
expect_from 0 big "$fkv" put s big -
expect 0 "$fkv" get s big
cmp -s out big || fail 'a value of 3 MB has changed'
head -c 200000 /dev/urandom >middle
expect_from 0 middle "$fkv" put s middle
expect 0 "$fkv" get s middle
cmp -s out middle || fail 'a value of 200 kB has changed'

# ---------------------------------------------------------------- check, stat
expect 0 "$fkv" check s
out_is '7 keys, no problem'
expect 0 "$fkv" -q check s
out_is ''
expect 0 "$fkv" --progress check s
err_has '100%'
expect 0 "$fkv" stat s
out_has '^keys  *7$'
out_has '^  large  *2 '
{
    echo '# fkv-dump 1'
    seq 3000 | sed 's/$/	value/'
    echo '# end 3000'
} >many
expect_from 0 many "$fkv" load n
expect 0 "$fkv" stat n
sed -n 's/^index bytes .*  \([0-9]*\)\.[0-9] a key$/\1/p' out | grep -qE '^(1[6-9]|2[0-9]|3[0-9])$' ||
    fail "the index of 3000 keys: $(grep '^index' out)"

# ---------------------------------------------------------------- dump, load
expect 0 "$fkv" dump s
mv out dump
head -n 1 dump | grep -q '^# fkv-dump 1$' || fail 'the first line of a dump'
tail -n 1 dump | grep -q '^# end 7$' || fail 'the last line of a dump'
grep -q '^\\x23key	#value$' dump || fail 'a key with a #'
[ "$(wc -l <dump)" -eq 9 ] || fail 'the lines of a dump'
expect_from 0 dump "$fkv" load t
expect 0 "$fkv" dump t
sort out >out.sorted
sort dump >dump.sorted
cmp -s out.sorted dump.sorted || fail 'what was loaded is not what was dumped'
expect 0 "$fkv" get t big
cmp -s out big || fail 'a value of 3 MB has changed by way of a dump'
head -n 4 dump >cut
expect_from 4 cut "$fkv" load u
err_has 'cut off'
printf '# fkv-dump 1\na\tb\nkey\tval' >cut
expect_from 4 cut "$fkv" load half
err_has 'line 3: the dump is cut off'
expect 0 "$fkv" get half a
expect 1 "$fkv" get half key
sed '$d' dump >cut
echo '# end 6' >>cut
expect_from 4 cut "$fkv" load u
err_has 'another number'
{ cat dump; echo 'a	b'; } >cut
expect_from 4 cut "$fkv" load u
err_has 'after'
for line in 'no tab' 'a	b	c' 'a	\' 'a	\x1' 'a	\xzz' '# en 1' '# end' '# end 1x'; do
    printf '# fkv-dump 1\n%s\n# end 1\n' "$line" >bad
    expect_from 4 bad "$fkv" load u
done
for first in '' '# fkv-dump 1\n' '# fkv-dump 1\na\tb\n# end 1'; do # lines without an end
    { printf "$first" && cat /dev/zero; } | timeout 10 "$fkv" load w >out 2>err
    [ $? -eq 4 ] || fail "an endless line after \"$first\""
    err_has 'line [1-3]: this is'
done
echo 'something else' >bad
expect_from 4 bad "$fkv" load v
[ -e v ] && fail 'no dump has made a store'
for command in 'load v' 'put v key'; do
    "$fkv" $command <&- >out 2>err
    [ $? -eq 4 ] || fail "$command from a closed standard input"
    err_has 'cannot be read'
    expect_from 4 . "$fkv" $command
    err_has 'cannot be read'
done
[ -e v ] && fail 'a standard input that cannot be read has made a store'
if [ "${FKV_TEST_LONG:-0}" != 0 ]; then # takes 2 GiB of memory
    yes | "$fkv" put v key >out 2>err
    [ $? -eq 4 ] || fail 'an endless value'
    err_has 'more than the 1073741824 bytes'
    [ -e v ] && fail 'an endless value has made a store'
fi
expect 4 "$fkv" load v

# ---------------------------------------------------------------- digest mode
expect 0 "$fkv" --digest put d key value
expect 0 "$fkv" get d key
out_is value
expect 0 "$fkv" dump d
head -n 1 out | grep -q '^# fkv-dump 1 digest$' || fail 'the first line of a dump of digests'
mv out dump.digests
expect_from 4 dump.digests "$fkv" load u
err_has digests
expect 0 "$fkv" repair d d2
expect 0 "$fkv" get d2 key
out_is value
expect_from 0 dump "$fkv" --digest load d3
expect 0 "$fkv" get d3 big
cmp -s out big || fail 'a value of 3 MB has changed in digest mode'

# ---------------------------------------------------------------- backup
expect 0 "$fkv" backup s b
out_has '^7 keys are in the backup$'
[ -e b-part ] && fail 'a backup has left its other name'
[ -e b-wal ] && fail 'a backup has a log'
expect 0 "$fkv" check b
expect 0 "$fkv" dump b
sort out >out.sorted
cmp -s out.sorted dump.sorted || fail 'a backup is not what was backed up'
expect 4 "$fkv" backup s b
err_has 'b exists'
expect 4 "$fkv" backup s s
expect 0 "$fkv" put b other key
expect 0 "$fkv" -p --rate=1000M backup d d4
grep -q '100%' err || fail 'no progress of a backup'
expect 0 "$fkv" get d4 key
out_is value
for rate in 0 x 12k -1 1MB '' 99999999999999G 18446744073709551616; do
    expect 2 "$fkv" --rate="$rate" backup s b2
done
[ -e b2 ] && fail 'a rate that is none has made a backup'

# ---------------------------------------------------------------- damage, repair
expect 0 "$fkv" repair s r
out_has '^7 keys are in the new store$'
expect 0 "$fkv" check r
expect 0 "$fkv" dump r
sort out >out.sorted
cmp -s out.sorted dump.sorted || fail 'a repair of a whole store'
expect 4 "$fkv" repair s r
cp s damaged
cp s-wal damaged-wal
offset=$(grep -abo '#value' damaged | head -n 1 | cut -d: -f1)
printf X | dd of=damaged bs=1 seek="$offset" conv=notrunc 2>/dev/null
expect 3 "$fkv" check damaged
out_has '^values: sector'
out_has '1 problems'
expect 3 "$fkv" -q check damaged
out_is ''
expect 3 "$fkv" get damaged '#key'
expect 3 "$fkv" dump damaged
expect 3 "$fkv" backup damaged b3
[ -e b3 ] && fail 'a backup of a damaged store'
expect 3 "$fkv" repair damaged repaired
out_has '^6 keys are in the new store$'
expect 0 "$fkv" check repaired
expect 1 "$fkv" get repaired '#key'
expect 0 "$fkv" get repaired big
cmp -s out big || fail 'a repair has changed a value of 3 MB'
dd if=/dev/zero of=damaged bs=4096 count=2 conv=notrunc 2>/dev/null
expect 3 "$fkv" check damaged
out_has '^header'
out_has 'cannot be opened'
expect 3 "$fkv" repair damaged headless
out_has 'the header is lost'
expect 0 "$fkv" check headless
expect 0 "$fkv" get headless middle
cmp -s out middle || fail 'a repair without a header has changed a value'
echo text >text
expect 4 "$fkv" check text
expect 4 "$fkv" repair text new
[ -e new ] && fail 'a repair of no store has made one'
: >empty
expect 4 "$fkv" check empty

# ---------------------------------------------------------------- output that goes nowhere
"$fkv" dump s >/dev/full 2>err
[ $? -eq 4 ] || fail 'a dump to a full disk'
[ "$(wc -l <err)" -eq 1 ] || fail "a dump to a full disk says: $(cat err)"
"$fkv" get s big >/dev/full 2>err
[ $? -eq 4 ] || fail 'a value to a full disk'

[ $failed -eq 0 ] && echo 'all passed'
exit $failed
