# Runs in the sandbox as bubblewrap's command, with an empty environment, and turns into the
# command that was asked for. It closes the doors that can be closed only from inside: streams,
# terminal, descriptors, Landlock, the filter of the user's own choice.
# Perl, because it starts in 2 ms, is part of every base system, and can make any system call.
# The job, from the descriptor that is the argument: fields, each after its length in 4 bytes.

open my $job, '<&=', $ARGV[0] or exit 125;
binmode $job;
my @job = do { local $/; unpack '(N/a*)*', <$job> };
close $job;
sub number { 0 + shift @job }
sub list { my $count = number(); splice @job, 0, $count }

my $report = number();
sub fail { my $line = "E$_[0]: $!"; syscall($main::call{write}, $report, $line, length $line); exit 125 }
our %call = list();
$_ += 0 for values %call;
# A string is passed to a system call as its address, a number as itself.
sub call {
    my ($name, @arguments) = @_;
    my $result = syscall($call{$name}, @arguments);
    fail($name) if $result < 0;
    return $result;
}

# bubblewrap's session is led by its pid 1, which cannot get a terminal for us. This fails only if
# we lead one already.
syscall($call{setsid});
for my $stream (0 .. 2) {
    my $fd = shift @job;
    if ($fd eq 'null') {
        sysopen my $null, '/dev/null', 2 or fail('/dev/null');
        call('dup3', fileno $null, $stream, 0);
    } else {
        call('dup3', 0 + $fd, $stream, 0);
    }
}
my $terminal = number();
call('ioctl', $terminal, 0x540E, 0) if $terminal >= 0;    # TIOCSCTTY
# All are closed by the exec, the report too: that is how the warden learns of it.
call('close_range', 3, 0xFFFFFFFF, 4) if number();
umask 022;
my $folder = shift @job;
chdir $folder or fail($folder);
my $processes = number();
call('prlimit64', 0, 6, pack('QQ', $processes, $processes), 0) if $processes;    # RLIMIT_NPROC
my $data = number();
call('prlimit64', 0, 2, pack('QQ', $data, $data), 0) if $data;    # RLIMIT_DATA

my ($attributes, $of_files) = (shift @job, number());
my @rules = list();
if (length $attributes) {
    my $ruleset = call('landlock_create_ruleset', $attributes, length $attributes, 0);
    while (my ($path, $access) = splice @rules, 0, 2) {
        sysopen my $object, $path, 010000000 or next;    # O_PATH; what is not there needs no rule
        my $granted = -d $object ? 0 + $access : $access & $of_files;
        my $rule = pack 'Ql', $granted, fileno $object;
        call('landlock_add_rule', $ruleset, 1, $rule, 0);
    }
    call('landlock_restrict_self', $ruleset, 0);
}

my @command = list();
%ENV = list();
my $filter = shift @job;
syscall($call{write}, $report, my $prepared = 'P', 1);
if (length $filter) {
    my $program = pack 'Sx6P', length($filter) / 8, $filter;
    call('seccomp', 1, 0, $program);    # SECCOMP_SET_MODE_FILTER
}
exec { $command[0] } @command;
my $code = 0 + $!;
my $line = "X$code";
syscall($call{write}, $report, $line, length $line);
exit($code == 2 ? 127 : 126);
