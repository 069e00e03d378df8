"""The weights of the network of `surroundings`, and what its scores are worth at first.

Written by ``python -m sim.codec_network``, which says what they are fitted to; not to be edited.
"""

import base64

import numpy as np
from numpy.typing import NDArray

_HIDDEN = (
    "@&yS2009O93Hbi@;{N^q`1;@U3<~xR0~i-N`1k?!0{i*_4*~@T&+_^0>iYQp7X}LH2p=gN0sI310ssU91pM{r7yAMI"
    "2Oa1H{|X5O0Ql(a@&x`12K@g22>=5D5dZ}J8~G9X{{s60_W}6)1@-*@009680{HUt*AN2(69WSN{s96O0`~a!3iAm5"
    "`UwIB1^^HL7Wn}S1_2KS0|EsQ0R#Bv1^)p3{{-|7`uqO<4E_N8{rdF(2>S^E0|E>R^7-`c@COJF=Gy!F@%i-o^Y#h="
    "==bmX`sDcP1_=TJ{s9642KW62-vR{&00igo`vCs|1`r@H1n2tu1q%r6_yzp*>lOn3{ul!I-R0^2{2d46{qh3=1Ox*7"
    "0s;sC?*9G#_yzO(1_1#L2Mr7u0{ZO{0RsF60Q~<9?)viu|N83x*D(e42oVqY`0EA#0sa662@L?|?C$#Z>G#?A4fy!s"
    "`w0mN1_J;A{r~~w0SEW-xbFb}0`vX^6B7&y|N8Yo0|)Z-{r2_=0Qv#}1PSc&=lb;a6b%*$`vVLC1Qh@R`v3v@{Q~;%"
    "?(+cr&-B&x1O^Hb{rvg}"
)
_OUT = "`0E7)4+r`Z`xE){_RsY8"
_BIAS = -3230
_LARGER = (
    "C;%t`C;%t`C;%t`C;%t`C;%t`C;%-0HULNfUI2suu>kD=F9D1J*#VsbR|BI2WCfuHd<X*zbPeqgg%y+<lpvQV4l!;#"
    "tx5A%H)Wu7422Vv6rt{}i@N8;q0P3|Y2B3KY3l0hgz?$+O8p`EX#COqg#8cxeg4w^6#q#7P5@*8UI17CQ~*){Pyj>#"
    "IRG;NFaRh3C;%t`C;%t`6am)&C;*25bO81ML;$`3rT`HEp#TU0h5{P`fdWMXa|9p-8V868a0~Mef)uMA$tX!U089N|"
    "zjXJ8mz&zFZMr(hY}0z%z~I{G1oIX9Y56w#e*1a+I{nZ6LjIioB?Kh|B?Kh|B?Kh|B?Kh|B?Kh|B?Kh|B?Kh|B?Kh|"
    "0t5mCB?JNl0tCbZ0tBc7r~?8DkP6HW#t=dY{Rx8-o)o+fg%jx;&Ky1;S0NW6lPCBv8ax<E8C%+M2Zi{YV6Ah$!_33g"
    "dE2(*3+@%`>HGTp4gSLZIRAtHv;WcmNf${MNf${MNf${MNf${MNf${MNf${MNf${MNf${MNf${MNf${MNf${MNf${M"
    "Nf(J0i5Arr;2UifsvIyM{~C`gC@4rRn=Iik6gf;ccR5f&b3)Wh*jL$Uvvd`U_nqmo3c^3kf7PSk5$fLXKk{(<8~ro>"
    "=Kfayod3rEA|WCnA|WCnA|WCnA|WCnA|WCnA|WCnA|WCnA|WCnA|WCnA|WCnA|WCnA|WCnA|WCnA|WCn1}K6ci68$S"
    "(<j|55FUs%t4Yv2oJHnNB2#cx0!@uqNMA8$nsd&I*pVcrJHGnD6wxQ((&Sh6IPH!1IQks?ZT(XI?EX>z3K<F+3K<F+"
    "3K<F+3K<F+3K<F+3K<F+3K<F+3K<F+3K<F+3K<F+3K<F+3K<F+3K<F+3K<F++ZZMr-5lQ@V<@L711H2m2t!*q^-k7C"
    "EMFQ~q*gs=dTS?a-*%dRu!*~%@vl6*y2=dLqt><Lx9D-~#_&e;5BEU%^ZG&j;1A#r;1A#r;1A#r;1A#r;1A#r;1A#r"
    ";1A#r;1A#r;1A#r;1A#r;1A#r;1A#r;1A#r;1A#r$q>pC5EY~swizxZq9J%NDl=R&Z%7ql;acxhEmNU$=V*#{3w5h>"
    "frtp3WurB#5X9QacHLIoVcqKB0_JDxDehPC1oS`lEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<J"
    "Ee9<JEe9<JEe9<JEe9<J?+335#|uUdIuQyK#TcX;w<x<O6+ewWgivl;tWYCr=56q3@^@o{?SHnPLZRubl)cBpve8`4"
    ";m=;$^4|X9j^?oGZtT?VEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<J"
    "?+335#|uUdIuW%L#Ta`X#UTzUV>2p3)=DZ)?`Y0x(|2TfcY=X@&wECVt(HQq8@pz=m)z{xmeyX{^4|X9j^?oGZtT?V"
    "Ee9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<J?+335#|uUdIuW%L#Ta`X"
    "<suF#axOeH;z@o=tWNWAns0+`0*zvJp@BDn$c5XP<gF2|uECnemeyX{^4|X9j^?oGZtT?VEe9<JEe9<JEe9<JEe9<J"
    "Ee9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<J?+335#|uUdIuW%L#Ta`X<suF#{x7#TF+5FAkx(FB"
    "eqm8)VuOR8j(;S8>y_lD)t|J$$=SosmeyX{^4|X9j^?oGZtT?VEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<J"
    "Ee9<JEe9<JEe9<JEe9<JEe9<JEe9<J?+335#|uUdIuW%L#Ta`X<suF#{x7#TG(ZYRK~vvc=3d`)hL`AjO`PJ0l!Fv^"
    "8Mj!_udwOTRL)-7^4|X9j^?oGZtT?VEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<J"
    "Ee9<JEe9<J?+335#|uUdIuW%L#Ta`X<suF#{x7#TG(c%dK~tMrV`wdW&W%Hm^_6RsppzuEGNz}y-nhofHPv3)^4|X9"
    "j^?oGZtT?VEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<JEe9<J?+335#|uUd"
    "IuW%L#Ta`X<suF#{x7#TG(c%dK~tbzV`wdG_jE3VRhed)r<U=sJfo|*W4#N{HPv3)^4|X9j^?oGZtT?V"
)
_USUAL = (
    "W+rAPW+rAPW+rAP%m7OVTL4M`Q2;0aL;x%RQUEXjg#f_-E&(zE%K~-<SPA<N%^4OdVLp~wz<B<Z+N}@4aL2ONkJ<#*"
    "Y|%Q*X69z*X69z*X69z*X69z*X69xlW+rAPW+rAPW+rAPW+rAPW+rAPW+o{m03^*E>L8L7_6~6g&<EZF00Z*^3j`+z"
    ";|Vbl+#BvN%1U);Oo)Y|fw=?01;${v*|lcoX69z*X69z*X69z*X69z*W+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAP"
    "W+rAPW+rAPW+nh6W+v$(8YI^m?i_6$IwlM+L_$1M2xGc@L73gLnZcXHn#V}ZX69z*X69z*X69z*X69z*X69xlW+rAP"
    "W+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rPb03@C#2P$tgx=R~etYtc9J9`L`Vyxh|OT-n=jLv4}"
    "X69z*X69z*X69z*X69z*W+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPYb|Cb03<~&b5E#Q"
    "l5cN$`E-tZi;lsiinO)DFU<$jX69z*X69z*X69z*X69z*X69xlW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAP"
    "W+rAPW+rAPW+rPbW+rAP4kX()$7h^)LyK~I(}%f=yr9Lj<G^&q0NiHgX69z*X69z*X69z*X69z*W+rAPW+rAPW+rAP"
    "W+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPDJ5nmW+rte5I*v5GJ<`Neufx~AdthOf3E+)HpfTUX69z*X69z*"
    "X69z*X69z*X69xlW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPbtV8XB3Qg|IgLVw"
    "1A<bEyrK)NP_)j(cH(B{X69z*X69z*X69z*X69z*W+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAP"
    "W+rAPW+rAPW+rteGcy25@o+GSCZSl0!H<=rK&SJz6Uj8zX69z*X69z*X69z*X69z*X69xlW+rAPW+rAPW+rAPW+rAP"
    "W+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPbtW@2j6`N;9+#epIgkgErKKsfL%OuaM%QNMX69z*X69z*X69z*"
    "X69z*W+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rteGc&e8W@hY@p?$!gO`+AJ"
    "?6#b@7`B?(X69z*X69z*X69z*X69z*X69xlW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAP"
    "W+rAPbtW@2-a>L*vzc0&e3hD+%BvcvF0qQreb#2?X69z*X69z*X69z*X69z*W+rAPW+rAPW+rAPW+rAPW+rAPW+rAP"
    "W+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rteGc(>oRaLvDw~c71N~Z;?6RAJ4%jDwWX69z*X69z*X69z*X69z*X69xl"
    "W+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPW+rAPbtW@2-a?g9g@%!Zs-Z=z=cNy`AE<55"
    "_~2&dX69z*X69z*X69z*X69z*"
)


def _read(text: str, kind: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b85decode(text), kind).astype(np.float32)


# Weights in 1/32, (hidden, inputs): of what is known of the block, of the coefficient and of its
# frequency. Then those of the hidden values, (hidden,), and what is added to their sum.
OF_BLOCK, OF_LINE, STATIC = np.split(_read(_HIDDEN, "i1").reshape(-1, 28), (12, 19), axis=1)
OUT, OUT_BIAS = _read(_OUT, "i1"), np.float32(_BIAS)
# Probability that a magnitude that has reached k is larger, float64 (k, bins of the score).
LARGER = _read(_LARGER, "<u2").astype(np.float64).reshape(14, -1) / 65536
# The same where no network chooses contexts, by the usual magnitude, in half octaves.
USUAL = _read(_USUAL, "<u2").astype(np.float64).reshape(14, -1) / 65536
