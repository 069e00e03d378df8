"""The weights of the network of `surroundings`, and what its scores are worth before any is seen.

Written by ``python -m sim.codec_network``, which says what they are fitted to; not to be edited.
"""

import base64

import numpy as np
from numpy.typing import NDArray

_HIDDEN = (
    "@d*e3{{aR92>Af`?)dxy@%Y#A5e@JB2^bPO0tf>10Q>*`2?7B8#qRv*=l1pf7yAP3{vs+Q0{8?00{{U91Nrmy1O@>8"
    "5FO<O{sRdL0QKtZ^8x(~2l@U02mJ#F0|){B8T=mm{QCI_`T+g={q_6!{sjjK|M~Fk^!^A25DoYM@B#G#{Qv#^4Dks7"
    "{0IRB1^o^L1P1>L5CR_t{{00L0RaK!`RW1y{0R0B0Q?38{Q&*={{Hm@3<(SE2nZ7d?)C8Z^aceH-{1G|@9^;X^8@_>"
    "-}~+T|Lg4R3Mv5l`u_X|{rCI??EL}&_5a%T@%r}o+zlBi^acU{{{RB{1Pk}uE$;mQ=osAp0|fi+_#6%R{q_O?1P28E"
    "0R#y8{`3C-^8(}e3IzWI1`Guo{r&9_1OEdC0Q&qF=JNCa1NP(o-7g6F3Kb6b`S%C?0{8<32MhrB?(hHi@$=;O4f6Ns"
    "@cau100IF5{Q&~v0SETz$npRH0_ffa7ZVQ*{q6cg_Vo1f{`Bz-4f6>667BE++yedj1tc2#0v8qW{{I0700jN_{|D~("
    "`t$hv)#%>#{tO2S59Ra="
)
_OUT = "`RD`$3kLQQ_zwB=_|WY3"
_BIAS = -3360
_LIKELY = (
    "C;%t`C;%t`C;%t`C;%t`C;%t`C;%t`O8_kZRRB`}dH}Eh00CVAr2*#w)B>0T>jYQ^(g&~#OAX@??-SV?LLpKp)iQuS"
    "15OxS&TJQakdS7a+O1`|n!$9-rP%1&=;D6o#_Q|woA*%pTlvfS?)%aFg#8cxeg4w^6#q#7RsdE2Rsd4~Rsc`{Rsc=_"
    "Pyj^$LI6boH2^;VG5|6FD*z|}C;%t`C;-v{mI4(4C;%t`jRA}SF9Lf3R|Cfa?*x$rO$IUv)C>C%))r+VV=@dxeOush"
    "kB1kUPO9y;7ss2=ncO|&Eb`*<@bTsJFZcHNSo&=HMf~ync>U%5C<G`3C<G`3C<G`3C<G`3C<G`3C<G`3C<G`3C<G`3"
    "C<G`3C<G`3C<F!s<^u)<C<G`3$OEebm;*Zm_YO`3cMeVuw-6y302q%L$sK4SoGK?bO+`mndTzdlc$(C$MZ@^ZEa&;<"
    "<mY$wB=<S`O8lq&iT)Y?bN{RV&i~l|fD(WbfD(WbfD(WbfD(WbfD(WbfD(WbfD(WbfD(WbfD(WbfD(WbfD(WbfD(Wb"
    "fD(WbfD(Wba}tgc!V#eph8lk&{2G5IW*$&3!$MR#T{1jG;Y!C?abtFLZ-^zB7`}7Me%Dgb`QZleH}cl@3;Hztq5X^g"
    "AOCy*vj5ZnjTns>jTns>jTns>jTns>jTns>jTns>jTns>jTns>jTns>jTns>jTns>jTns>jTns>jTns>s2CO*&l%Yo"
    "QX3*9F(2tIlPa(+*)q2|I72*7c2N~%L}y2NtAI_HJemT!>dnQ|8Qvb#zUT|@;PZR;9s2(JQ2jan*#1HPvJtWovJtWo"
    "vJtWovJtWovJtWovJtWovJtWovJtWovJtWovJtWovJtWovJtWovJtWovJtWoR}#z<e-(Nc${CLvoF5D+buN}M+$zpM"
    "zh#eVNl~X?ByXl`Cx$DZ_NR2P63Dd8?$&kO)!x_Tqw84k8T1YJR{0hCX#8dUC=VzPC=VzPC=VzPC=VzPC=VzPC=VzP"
    "C=VzPC=VzPC=VzPC=VzPC=VzPC=VzPC=VzPC=VzPIuM%@R26O*_Z#^ifh0mG2{tV}r#zrdeOdfi31re{8Ek=gCX?8Y"
    "Ih|ChhP@=sY|4AfQqrl|P2NT0o#$igqwa0-&GXXr@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<"
    "@d)t<@d)t<@d)t<@d)t<sR>65Ee&Q50TK)qml(7hVj!+1GA#!|`#Qi=gi^L-b#L-*xNF#ZR+Evh+PvM&>(9>7$kX!L"
    "E8&CY4eQ_T5c0M3;`Xcf@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<"
    "sR>65Ee&Q50TK)qml(7hcOmd5GA#!|mqHXw1z%cd5^7##xOm=&-j!guA+8Y5-_6d^$kX!LE8&CY4eQ_T5c0M3;`Xcf"
    "@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<sR>65Ee&Q50TK)qml(7h"
    "cOmd5GA#!=mqOM^Ls$H1d2mN_?sE5R{f<kOuC&XmM8M9`$kX!LE8&CY4eQ_T5c0M3;`Xcf@d)t<@d)t<@d)t<@d)t<"
    "@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<sR>65Ee&Q50TK)qml(7hcOmd5GA)}jRXXiL{ZSfi"
    "k8c2Wzl#Nga+z$P@~m60$IM2`$kX!LE8&CY4eQ_T5c0M3;`Xcf@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<"
    "@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<sR>65Ee&Q50TK)qml(7hcOmd5GA&CqM?5G+qEv%cFKe)IY>4QO*^||fxSYwo"
    "8O3MN$kX!LE8&CY4eQ_T5c0M3;`Xcf@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<"
    "@d)t<@d)t<sR>65Ee&Q50TK)qml(7hcOmd5GA&CqM?5G+qEzBuh;CbTV0}cCA(TI&xT-a#|G}lm$kX!LE8&CY4eQ_T"
    "5c0M3;`Xcf@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<@d)t<sR>65Ee&Q5"
    "0TK)qml(7hcOmd5GA&CqM?5G+U`(J^h+bQDHhsZ_&4&n|J)RP@#?0%+$kX!LE8&CY4eQ_T5c0M3;`Xcf"
)

_BLOCK_INPUTS, _LINE_INPUTS, _STATIC_INPUTS = 12, 7, 9
_INPUTS = _BLOCK_INPUTS + _LINE_INPUTS + _STATIC_INPUTS


def _read(text: str, kind: str) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = np.frombuffer(base64.b85decode(text), kind).astype(np.float32)
    return numbers


_ROWS = _read(_HIDDEN, "i1").reshape(-1, _INPUTS)

# Weights in 1/32, (hidden, inputs): of what is known of the block, of the coefficient and of its
# frequency. Then those of the hidden values, (hidden,), and of their sum.
OF_BLOCK, OF_LINE, STATIC = np.split(_ROWS, (_BLOCK_INPUTS, _BLOCK_INPUTS + _LINE_INPUTS), axis=1)
OUT, OUT_BIAS = _read(_OUT, "i1"), np.float32(_BIAS)
# Probability that a magnitude that has reached k is larger, float64 (k, bins of the score).
LARGER = _read(_LIKELY, "<u2").astype(np.float64).reshape(14, -1) / 65536
